"""Names and MAC addresses that an attachment always has."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from terway_core.types import Attachment, AttachmentKey, Pod


def attachment(namespace="", name="", ifname="eth0", container_id="c0ffee", network="terway"):
    return Attachment(
        network=network,
        container_id=container_id,
        ifname=ifname,
        pod=Pod(namespace=namespace, name=name),
    )


@pytest.mark.parametrize(
    ("namespace", "name", "ifname", "expected"),
    [
        ("default", "client-b6989bf87-2bgtc", "eth0", "calic95a4947e07"),
        ("default", "test-pod", "eth0", "cali7fba7a35b74"),
        ("default", "test-pod", "eth1", "cali01035d7d18e"),
    ],
)
def test_host_ifname_is_what_felix_looks_for(namespace, name, ifname, expected):
    assert attachment(namespace, name, ifname).host_ifname == expected


def test_host_ifname_without_a_pod_is_that_of_the_sandbox():
    names = {attachment(container_id=c, ifname=i).host_ifname for c in ("a", "b") for i in ("eth0", "eth1")}
    assert len(names) == 4


attachments = st.builds(
    attachment,
    namespace=st.text(),
    name=st.text(),
    ifname=st.text(min_size=1),
    container_id=st.text(min_size=1),
    network=st.text(min_size=1),
)


@given(attachments)
def test_host_ifname_fits_a_link(one):
    assert re.fullmatch(r"cali[0-9a-f]{11}", one.host_ifname)  # IFNAMSIZ: 15 and a NUL


@given(attachments, st.text())
def test_mac_is_local_unicast_and_stable(one, end):
    octets = bytes.fromhex(one.mac(end).replace(":", ""))
    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", one.mac(end))
    assert octets[0] & 0b11 == 0b10  # locally administered, not a group address
    assert one.mac(end) == attachment(
        namespace="moved", container_id=one.container_id, ifname=one.ifname, network=one.network
    ).mac(end)


@given(attachments, attachments)
def test_macs_of_ends_and_of_attachments_differ(one, other):
    assert one.mac("host") != one.mac("pod")
    assume(one.key != other.key and str(one.key) != str(other.key))
    assert one.mac("pod") != other.mac("pod")


def test_key_reads_as_the_three_that_identify_it():
    assert attachment().key == AttachmentKey("terway", "c0ffee", "eth0")
    assert str(attachment().key) == "terway/c0ffee/eth0"
