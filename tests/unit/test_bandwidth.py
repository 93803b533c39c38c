from contextlib import suppress
from fractions import Fraction
from ipaddress import ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terway_core.bandwidth import parse_quantity, plugin
from terway_core.errors import InvalidConfig
from terway_core.hookspecs import hookimpl
from terway_core.registry import Drivers
from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Pod
from terway_core.wiring.objects import Address, LinkUp, TokenBucket, Veth, Wiring

LEASE = Lease(addresses=(ip_interface("10.0.0.2/32"),))


class Driver:
    """Wires a veth pair, as most modes do; with ``peer`` another name than the pod's interface, as in
    exclusive-ENI mode, where the pair carries Service traffic beside the ENI."""

    def __init__(self, *, veth=True, peer="eth0", mtu=1500):
        self.veth, self.peer, self.mtu = veth, peer, mtu

    @hookimpl
    def terway_allocate(self, attachment, node):
        return LEASE

    @hookimpl
    def terway_setup(self, attachment, lease, node):
        mac = attachment.mac("host"), attachment.mac("pod")
        veth = Veth(name=attachment.host_ifname, peer=self.peer, mac=mac[0], peer_mac=mac[1], mtu=self.mtu)
        other = Veth(name="other", peer="net1", mac=mac[0], peer_mac=mac[1])
        return Wiring(
            host=(other, veth) if self.veth else (other,),
            pod=(LinkUp(dev="eth0"), Address(dev="eth0", address=lease.addresses[0])),
        )

    @hookimpl
    def terway_teardown(self, attachment, lease):
        return Outcome(changed=True)

    @hookimpl
    def terway_gc(self, live, node):
        return GcReport()


def attachment(annotations=None, bandwidth=None):
    return Attachment(
        network="terway",
        container_id="c0ffee",
        ifname="eth0",
        pod=Pod(namespace="shop", name="cart", annotations=annotations or {}),
        runtime_config={} if bandwidth is None else {"bandwidth": bandwidth},
    )


def wired(pod, driver=None, node_mtu=1500):
    """The wiring with and without the plugin."""
    driver = driver or Driver()
    plain, shaped = Drivers(), Drivers()
    plain.register("m", driver)
    shaped.register("m", driver)
    assert shaped.register_wrapper("bandwidth", plugin).problem == ""
    node = Node(name="node-a", mtu=node_mtu)
    return plain.setup("m", pod, LEASE, node), shaped.setup("m", pod, LEASE, node)


def added(pod, driver=None, node_mtu=1500):
    """What the plugin adds: (on the host, in the pod). It changes nothing else."""
    before, after = wired(pod, driver, node_mtu)
    assert after.node == before.node
    assert after.host[: len(before.host)] == before.host
    assert after.pod[: len(before.pod)] == before.pod
    return after.host[len(before.host) :], after.pod[len(before.pod) :]


INGRESS = "kubernetes.io/ingress-bandwidth"
EGRESS = "kubernetes.io/egress-bandwidth"


def test_pod_without_limits_is_left_alone():
    before, after = wired(attachment())
    assert after == before


def test_ten_megabit_both_ways():
    pod = attachment({INGRESS: "10M", EGRESS: "10M"})
    host, inside = added(pod)
    assert host == (TokenBucket(dev=pod.host_ifname, rate=1_250_000, burst=3000, limit=34_250),)
    assert inside == (TokenBucket(dev="eth0", rate=1_250_000, burst=3000, limit=34_250),)


def test_one_gigabit():
    _, (bucket,) = added(attachment({EGRESS: "1G"}))
    assert bucket == TokenBucket(dev="eth0", rate=125_000_000, burst=125_000, limit=3_250_000)


def test_each_direction_alone():
    assert [len(part) for part in added(attachment({INGRESS: "10M"}))] == [1, 0]
    assert [len(part) for part in added(attachment({EGRESS: "10M"}))] == [0, 1]


def test_burst_holds_a_packet_of_the_links_mtu():
    (host,), (inside,) = added(attachment({INGRESS: "1M", EGRESS: "1M"}), Driver(mtu=8500))
    assert host.burst == inside.burst == 10_000


@pytest.mark.parametrize("driver", [Driver(veth=False), Driver(peer="veth1")])
def test_link_that_is_no_veth_gets_egress_only(driver):
    host, (bucket,) = added(attachment({INGRESS: "10M", EGRESS: "10M"}), driver, node_mtu=8500)
    assert host == ()
    assert bucket == TokenBucket(dev="eth0", rate=1_250_000, burst=10_000, limit=41_250)


def test_runtime_config_wins_over_annotations():
    pod = attachment({INGRESS: "1M", EGRESS: "1M"}, {"ingressRate": 16_000_000, "ingressBurst": 8_000_000})
    (host,), (inside,) = added(pod)
    assert (host.rate, host.burst, host.limit) == (2_000_000, 1_000_000, 1_050_000)
    assert inside.rate == 125_000


def test_names_as_containerd_writes_them():
    pod = attachment(None, {"IngressRate": 8_000_000, "IngressBurst": 2**32 - 1, "EgressRate": 16_000_000})
    (host,), (inside,) = added(pod)
    assert (host.rate, inside.rate) == (1_000_000, 2_000_000)


def test_zero_rate_means_no_limit_was_given():
    assert added(attachment(None, {"ingressRate": 0, "ingressBurst": 0, "egressRate": 0})) == ((), ())
    _, (inside,) = added(attachment({EGRESS: "1M"}, {"egressRate": 0, "egressBurst": 0}))
    assert inside.rate == 125_000


@pytest.mark.parametrize("burst", [2**31 - 1, 2**32 - 1])
def test_burst_that_kubelet_and_containerd_make_up_is_not_taken(burst):
    _, (bucket,) = added(attachment(None, {"egressRate": 10_000_000, "egressBurst": burst}))
    assert bucket.burst == 3000


def test_burst_too_small_for_a_packet_is_raised():
    _, (bucket,) = added(attachment(None, {"egressRate": 10_000_000, "egressBurst": 8}))
    assert bucket.burst == 3000


@given(rate=st.integers(1000, 10**15), burst=st.integers(0, 2**64))
def test_every_rate_fits_the_kernels_fields(rate, burst):
    _, (bucket,) = added(attachment(None, {"egressRate": rate, "egressBurst": burst}))
    assert bucket.rate == rate // 8 >= 125
    assert 0 < bucket.burst <= bucket.limit < 2**32


@pytest.mark.parametrize(
    "text", ["", "fast", "10m M", "10Mi b", "1e", "--5M", "10 M", "0x10M", "\N{ARABIC-INDIC DIGIT ONE}M"]
)
def test_malformed_annotation_is_named(text):
    with pytest.raises(InvalidConfig, match=EGRESS):
        added(attachment({EGRESS: text}))


@pytest.mark.parametrize("text", ["0", "999", "-10M", "2P", "1E", "100m"])
def test_rate_out_of_kubernetes_bounds_is_named(text):
    with pytest.raises(InvalidConfig, match=f"{INGRESS}.*between 1k and 1P"):
        added(attachment({INGRESS: text}))


@pytest.mark.parametrize(
    ("bandwidth", "named"),
    [
        ({"ingressRate": "10M"}, "ingressRate"),
        ({"egressRate": -1}, "egressRate"),
        ({"egressRate": True}, "egressRate"),
        ({"egressRate": 1.5}, "egressRate"),
        ({"egressRate": 1}, "egressRate"),
        ({"egressRate": 10**6, "egressBurst": None}, "egressBurst"),
        (["10M"], "runtimeConfig.bandwidth"),
    ],
)
def test_malformed_runtime_config_is_named(bandwidth, named):
    with pytest.raises(InvalidConfig, match=named):
        added(attachment(None, bandwidth))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10M", 10**7),
        ("1.5Gi", 3 * 2**29),
        ("1e6", 10**6),
        ("1E3", 1000),
        ("1E", 10**18),
        ("1Ei", 2**60),
        (".5k", 500),
        ("5.", 5),
        ("+7", 7),
        ("-7k", -7000),
        ("100m", Fraction(1, 10)),
        ("3u", Fraction(3, 10**6)),
        ("3n", Fraction(3, 10**9)),
        (" 3Ti ", 3 * 2**40),
    ],
)
def test_quantity(text, value):
    assert parse_quantity(text) == value


@given(st.text(alphabet="0123456789.+-eEkMGi ", max_size=8))
def test_quantity_of_any_text_is_a_number_or_a_value_error(text):
    with suppress(ValueError):
        assert isinstance(parse_quantity(text), Fraction)
