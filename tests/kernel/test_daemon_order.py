"""A DEL that overtakes its ADD; pods that do not wait for one another; what is on disk before what."""

import pytest

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(make_node):
    node = make_node(workers=1)
    node.start_with_faults()
    return node


def events(node, kind):
    path = node.faults / "events"
    return path.read_text().split().count(kind) if path.exists() else 0


def refused_by_the_delete(node, process):
    answer = node.answer(process)
    return answer.code == 11 and "DEL for this attachment arrived" in answer.text


@pytest.mark.parametrize("step", ["allocate", "setup", "apply"])
def test_delete_overtakes_an_add_that_works(node, step):
    before = node.kernel()
    pod = node.pod()
    with node.held(step):
        add = node.call("ADD", pod)
        node.wait_for((node.faults / f"held-{step}").exists, f"the ADD is in {step}")
        delete = node.call("DEL", pod)
        node.wait_for(lambda: events(node, "cancel"), "the DEL cancels the ADD")
    assert refused_by_the_delete(node, add)
    assert node.answer(delete).status == 0
    assert node.journal() == []
    assert node.audit() == []
    assert set(node.kernel()) == set(before)
    node.add(pod)


def test_delete_overtakes_an_add_that_waits_for_its_turn(node):
    before = node.kernel()
    pod = node.pod()
    with node.held("allocate"):
        adds = []
        for number in (1, 2, 3):
            adds.append(node.call("ADD", pod))
            node.wait_for(lambda number=number: events(node, "turn") == number, "the ADD has come")
        node.wait_for((node.faults / "held-allocate").exists, "the first ADD works")
        delete = node.call("DEL", pod)
        node.wait_for(lambda: events(node, "cancel") == 3, "the DEL cancels all of them")
    assert all(refused_by_the_delete(node, add) for add in adds)
    assert node.answer(delete).status == 0
    assert node.journal() == []
    assert node.audit() == []
    assert set(node.kernel()) == set(before)


def test_delete_overtakes_an_add_that_waits_for_a_worker(node):
    pod, other = node.pod(), node.pod()
    with node.held("allocate"):
        working = node.call("ADD", other)
        node.wait_for((node.faults / "held-allocate").exists, "the only worker is busy")
        waiting = node.call("ADD", pod)
        node.wait_for(lambda: node.status()["queue"] == 1, "the second ADD stands in line")
        delete = node.call("DEL", pod)
        # It need not wait for the worker to be told so.
        assert refused_by_the_delete(node, waiting)
    assert node.answer(working).status == 0
    assert node.answer(delete).status == 0
    assert [row["container_id"] for row in node.journal()] == [other.container_id]
    assert node.audit() == []


def test_pods_do_not_wait_for_one_another(make_node):
    node = make_node(workers=2)
    node.start_with_faults()
    quick, slow = node.pod(), node.pod()
    node.add(quick)
    with node.held("allocate"):
        add = node.call("ADD", slow)
        node.wait_for((node.faults / "held-allocate").exists, "one ADD is stuck")
        assert node.cni("CHECK", quick).status == 0
        node.delete(quick)
    assert node.answer(add).status == 0


def test_add_after_the_delete_is_not_cancelled(node):
    pod = node.pod()
    node.add(pod)
    with node.held("teardown"):
        delete = node.call("DEL", pod)
        node.wait_for((node.faults / "held-teardown").exists, "the DEL works")
        add = node.call("ADD", pod)
        node.wait_for(lambda: events(node, "turn") == 3, "the ADD has come")
    assert node.answer(delete).status == 0
    answer = node.answer(add)
    assert answer.status == 0
    assert all(node.reaches(address) for address in answer.addresses)
    assert node.audit() == []


@pytest.mark.parametrize(("command", "step"), [("ADD", "allocate"), ("DEL", "teardown")])
def test_gc_does_not_wait_for_what_is_under_way(node, command, step):
    pod = node.pod()
    if command == "DEL":
        node.add(pod)
    with node.held(step):
        process = node.call(command, pod)
        node.wait_for((node.faults / f"held-{step}").exists, f"the {command} works")
        for path in ("/v1/gc?dry_run=true", "/v1/gc"):
            assert node.ask("POST", path) == {"released": [], "problems": []}
    answer = node.answer(process)
    assert answer.status == 0
    assert node.audit() == []
    if command == "ADD":
        assert all(node.reaches(address) for address in answer.addresses)


def test_what_a_pod_gets_is_written_before_the_kernel_has_it_and_on_disk_before_the_runtime_knows(node):
    path = node.faults / "events"
    node.add(node.pod())
    path.unlink()
    pod = node.pod()
    node.add(pod)
    told = [event for event in path.read_text().split() if event != "turn"]
    # First the row, an address of each family, and the row with lease and wiring; then the word `ready`.
    assert told == ["fleeting"] * 4 + ["sync", "apply", "fleeting", "synced"]
    path.unlink()
    node.delete(pod)
    assert {"turn", "fleeting"} == {*path.read_text().split()}
