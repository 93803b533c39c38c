"""kill -9 of the daemon before and after each side effect of a command; the next daemon puts all in order."""

import itertools

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

#: An ADD that makes everything a pod can have: two families, and queues that shape its traffic.
BANDWIDTH = {"ingressRate": 10**9, "ingressBurst": 10**6, "egressRate": 10**9, "egressBurst": 10**6}
NETCONF = {"runtimeConfig": {"bandwidth": BANDWIDTH}}


@pytest.fixture
def node(make_node):
    node = make_node()
    node.start_with_faults()
    return node


def killed_at(node, command, step, action):
    """Do ``action`` with a daemon that is killed at a step of ``command``.

    Its answer, and whether the daemon was killed; then there is another one.
    """
    pid = node.status()["pid"]
    (node.faults / f"kill-{command}").write_text(str(step))
    answer = action()
    status = node.status()
    killed = status is None or status["pid"] != pid
    if killed:
        node.wait_until_ready(but_not=pid)
    assert not (node.faults / f"kill-{command}").exists()
    return answer, killed


def rows_of(node, name):
    """The container ids with which a pod is in the journal."""
    return [row["container_id"] for row in node.journal() if row["name"] == name]


@pytest.mark.parametrize("company", ["alone", "beside another", "instead of an old sandbox"])
def test_add(node, company):
    taken = set(node.add(node.pod())) if company == "beside another" else set()
    before = node.kernel()
    for step in itertools.count(1):
        name = f"web-{step}"
        if company == "instead of an old sandbox":
            node.add(node.pod(name), **NETCONF)
        pod = node.pod(name)
        answer, killed = killed_at(node, "add", step, lambda pod=pod: node.cni("ADD", pod, **NETCONF))
        if not killed:
            assert answer.status == 0
            break
        assert answer.code == 11
        assert node.audit() == []
        if not rows_of(
            node, name
        ):  # undone already; otherwise one sandbox, old or new, is as if nothing were
            assert set(node.kernel()) == set(before)

        node.delete(pod)  # what a runtime does after a failed ADD
        assert pod.container_id not in rows_of(node, name)
        node.remove(pod)

        again = node.pod(name)
        addresses = node.add(again, **NETCONF)
        assert rows_of(node, name) == [again.container_id]
        assert not taken & set(addresses)
        assert all(node.reaches(address) for address in {*taken, *addresses})
        assert node.audit() == []
        node.delete(again)
        assert node.audit() == []
        assert set(node.kernel()) == set(before)
    assert step > 15  # or the trap does not see what an ADD does


@pytest.mark.parametrize("company", ["alone", "beside another"])
def test_delete(node, company):
    taken = set(node.add(node.pod())) if company == "beside another" else set()
    before = node.kernel()
    for step in itertools.count(1):
        pod = node.pod()
        node.add(pod, **NETCONF)
        answer, killed = killed_at(node, "delete", step, lambda pod=pod: node.cni("DEL", pod, **NETCONF))
        # The daemon died in the middle, so the plugin left the DEL in the spool; on a slow disk that takes
        # longer than the next daemon's start, which then finds nothing there.
        assert (answer.status, answer.body) == (0, None)
        if any(node.config.spool.glob("*.del")):
            node.terway("gc")
        assert node.audit() == []
        assert set(node.kernel()) == set(before)
        assert all(node.reaches(address) for address in taken)
        if not killed:
            break
        node.delete(pod)
    assert step > 10


def test_recovery(node):
    """The daemon that puts things in order is killed too. It finds a spooled DEL and a vanished pod."""
    before = node.kernel()
    for step in itertools.count(1):
        deleted, vanished = node.pod(), node.pod()
        node.add(deleted, **NETCONF)
        node.add(vanished, **NETCONF)
        starts = node.log.read_text().count('"listening"')
        with node.away():
            node.delete(deleted)
            node.remove(vanished)
            node.wait_for(lambda: len(links_of_pods(node)) == 1, "the kernel takes the namespace apart")
            (node.faults / "kill-recover").write_text(str(step))
        assert node.audit() == []
        assert set(node.kernel()) == set(before)
        node.remove(deleted)
        if node.log.read_text().count('"listening"') == starts + 1:
            break
    assert step > 10


def links_of_pods(node):
    return [line for line in node.kernel() if line.startswith("link cali")]
