"""The daemon is away, comes, or goes: what the runtime is told, and what is caught up on."""

import json
import os
import signal
import socket

import pytest

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(make_node):
    return make_node()


def conflist(node):
    return node.folder / "net.d" / "10-terway.conflist"


def test_daemon_away(node):
    node.start()
    before = node.kernel()
    deleted, kept, new = node.pod(), node.pod(), node.pod()
    node.add(deleted)
    addresses = node.add(kept)
    node.stop()

    for command in ("ADD", "CHECK"):
        answer = node.cni(command, kept if command == "CHECK" else new)
        assert answer.code == 11
        assert "daemon is not reachable" in answer.text
    answer = node.cni("STATUS", version="1.1.0")
    assert answer.code == 50
    node.delete(deleted, prevResult=deleted.results["eth0"])
    node.delete(deleted, env={"CNI_NETNS": ""})
    node.delete(new)  # as after each ADD that failed
    assert all(node.reaches(address) for address in addresses)
    assert len([line for line in node.audit() if line.startswith("spool:")]) == 3

    node.start()
    assert node.audit() == []
    assert [row["container_id"] for row in node.journal()] == [kept.container_id]
    assert all(node.reaches(address) for address in addresses)
    assert node.cni("CHECK", kept).status == 0
    node.delete(kept)
    assert set(node.kernel()) == set(before)


def test_spool_of_before_spares_who_was_added_since(node):
    """A runtime that uses container ids again: the DEL of the first life comes after the second one's ADD."""
    node.start()
    pod = node.pod()
    node.add(pod)
    node.stop()
    node.delete(pod)
    (spooled,) = (node.folder / "state" / "spool").iterdir()
    content = spooled.read_bytes()
    node.start()
    node.renew(pod)
    addresses = node.add(pod)
    spooled.write_bytes(content)
    node.ask("POST", "/v1/gc")
    assert not spooled.exists()
    assert all(node.reaches(address) for address in addresses)
    assert node.audit() == []


def test_what_is_no_delete_in_the_spool_is_kept_for_people(node):
    spool = node.folder / "state" / "spool"
    spool.mkdir(parents=True)
    (spool / "00000000000000000001-1.del").write_bytes(os.urandom(100))
    (spool / "00000000000000000002-1.del").write_bytes(b"CNI_COMMAND=ADD\0\0{}")
    (spool / "00000000000000000003-1.del").mkdir()
    (spool / "no-number.del").write_bytes(b"")
    node.start()
    assert {path.suffix for path in spool.iterdir()} == {".rejected"}
    node.ask("POST", "/v1/gc")
    assert node.status()["healthy"]


def test_second_daemon_is_refused(node):
    node.start()
    pid = node.status()["pid"]
    other = node.terway("daemon", status=1)
    assert f"another terway daemon (pid {pid}) runs" in other
    assert "stop it first" in other
    node.add(node.pod())
    assert node.status()["pid"] == pid


def test_stop_finishes_what_runs_and_refuses_what_comes(node):
    node.start_with_faults()
    deleted, adding, late = node.pod(), node.pod(), node.pod()
    node.add(deleted)
    with node.held("allocate"):
        running = node.call("ADD", adding)
        node.wait_for((node.faults / "held-allocate").exists, "the ADD works")
        node.process.send_signal(signal.SIGTERM)
        node.wait_for(lambda: "the daemon is stopping" in node.status()["problems"], "the daemon stops")
        for answer in (node.cni("ADD", late), node.cni("DEL", deleted)):
            assert answer.code == 11
            assert "daemon is stopping" in answer.text
        answer = node.cni("STATUS", version="1.1.0")
        assert answer.code == 50
    answer = node.answer(running)
    assert answer.status == 0
    assert all(node.reaches(address) for address in answer.addresses)
    assert node.process.wait(30) == 0  # it has been told already
    node.kill()
    assert not (node.folder / "run" / "terway.sock").exists()

    node.start()
    assert node.cni("ADD", adding).body == answer.body
    node.delete(deleted)
    node.delete(late)
    assert node.audit() == []


def test_systemd_is_told(node, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        node.start(wait=False, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(100) == b"READY=1"
        assert conflist(node).exists()
        assert node.status()["ready"]
        node.stop()
        assert systemd.recv(100) == b"STOPPING=1"


def test_conflist_comes_when_the_drivers_serve(node):
    (node.faults / "refuse").write_text("the metadata service does not answer")
    node.start_with_faults(wait=False)
    node.wait_for(node.status, "the daemon answers")
    assert not conflist(node).exists()
    pod = node.pod()
    reason = "driver 'vpc': the metadata service does not answer"
    for answer, code in ((node.cni("STATUS", version="1.1.0"), 50), (node.cni("ADD", pod), 11)):
        assert answer.code == code
        assert reason in answer.text
    node.delete(pod)
    assert node.ask("GET", "/readyz") == {"ready": False, "problems": [reason]}
    assert node.journal() == []

    (node.faults / "refuse").unlink()
    node.wait_until_ready()
    assert json.loads(conflist(node).read_text())["plugins"][0]["socket"] == str(node.config.socket)
    answer = node.cni("STATUS", version="1.1.0")
    assert (answer.status, answer.body) == (0, None)
    node.add(pod)


def test_running_pods_are_served_before_the_drivers_are(node):
    node.start()
    before = node.kernel()
    deleted, kept = node.pod(), node.pod()
    node.add(deleted)
    addresses = node.add(kept)
    node.stop()
    (node.faults / "refuse").write_text("not yet")
    node.start_with_faults(wait=False)
    node.wait_for(node.status, "the daemon answers")
    assert node.cni("CHECK", kept).status == 0
    node.delete(deleted)
    # Its network is gone, its address cannot be given back yet; nobody must wait for that.
    assert [(row["state"], row["problem"]) for row in node.journal() if row["name"] == deleted.name] == [
        ("releasing", "the vpc driver is not started, so its address pools are closed")
    ]
    assert all(node.reaches(address) for address in addresses)

    (node.faults / "refuse").unlink()
    node.wait_until_ready()
    node.wait_until_clean()
    node.delete(kept)
    assert set(node.kernel()) == set(before)
    assert node.journal() == []


def test_nothing_is_served_without_a_driver(make_node):
    node = make_node(drivers=[])
    node.start(wait=False)
    node.wait_for(node.status, "the daemon answers")
    answer = node.cni("ADD", node.pod())
    assert answer.code == 11
    assert "no driver is configured" in answer.text
    assert not conflist(node).exists()


def test_foreign_file_in_place_of_the_conflist(node):
    path = conflist(node)
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "terway", "plugins": [{"type": "terway"}]}')
    node.start(wait=False)
    node.wait_for(lambda: "is not terway-core's file" in str(node.status()), "the daemon says so")
    path.unlink()
    node.wait_until_ready()
