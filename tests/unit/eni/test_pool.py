"""What the pool does on good days."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from terway_core.eni.model import Holds
from terway_core.errors import InvalidConfig, NoAddress, RetryLater, StoreError

from .harness import DAY


def test_a_warm_pool_serves_without_a_call(make_node):
    node = make_node(warm_min=5, warm_max=10)
    node.boot()
    node.work()
    assert len(node.addresses("free")) == 5
    node.forget_calls()
    grants = [node.pool.allocate(f"pod-{number}") for number in range(5)]
    assert node.calls() == []
    assert {row.address for grant in grants for row in grant.addresses} == node.in_cloud()[
        grants[0].eni.eni_id
    ]
    node.work()
    assert len(node.addresses("free")) == 5


def test_who_comes_first_is_served_first(make_node):
    node = make_node(cooldown=0, max_enis=1, instance_type="ecs.g7.large")
    node.boot()
    node.burst(6)
    account = node.account
    account.fault("down")  # nothing comes but what is given back
    node.time.advance(DAY)  # so that a comparison is under way, and there is hope
    waiting = []
    for number in range(4):
        waiting.append(node.ask(f"late-{number}"))
        while len(node.pool.waiting()) <= number:
            time.sleep(0.001)
    for number, future in enumerate(waiting):
        node.pool.release(f"pod-{number}")
        node.pool.step()
        assert str(future.result().addresses[0].owner) == f"late-{number}"
        assert len(node.pool.waiting()) == 3 - number


def test_whoever_waits_is_told_after_the_time_he_has(make_node, account):
    node = make_node(wait=0.2)
    node.boot()
    account.fault("stuck", "AttachNetworkInterface")
    future = node.ask("pod")
    while not future.done():
        node.pool.settle()
    with pytest.raises(NoAddress, match=r"^waited 0.2 s: no address is free: none came free$"):
        future.result()
    assert node.pool.waiting() == []
    account.clear()
    node.work(5)
    assert node.allocate("pod").addresses  # what he waited for has come meanwhile


def test_the_same_owner_gets_the_same(make_node):
    node = make_node()
    pool = node.boot()
    grant = node.allocate("pod")
    assert pool.allocate("pod") == grant
    node.kill()
    assert node.boot().allocate("pod").addresses == grant.addresses
    assert node.pool.release("pod")
    assert not node.pool.release("pod")


def test_an_address_rests_also_over_a_restart(make_node):
    node = make_node(cooldown=30, max_enis=1)
    node.boot()
    first = node.allocate("pod-1").addresses[0].address
    node.pool.release("pod-1")
    rested = node.time.clock() + 30
    assert node.addresses("free") == []
    assert node.addresses("cooling") == [str(first)]
    assert node.allocate("pod-2").addresses[0].address != first  # although another one had to be made
    for left in (10, 1):
        node.time.advance(rested - left - node.time.clock())
        node.kill()
        node.boot()
        assert node.addresses("cooling") == [str(first)]
    node.time.advance(1)
    assert node.addresses("free") == [str(first)]
    node.forget_calls()
    assert node.pool.allocate("pod-3").addresses[0].address == first
    assert node.calls() == []


def test_an_address_that_rests_is_waited_for_where_no_other_can_come(make_node):
    node = make_node("ecs.g7.large", max_enis=1, cooldown=5)
    node.boot()
    node.burst(6)
    node.pool.release("pod-0")
    began = node.time.clock()
    node.allocate("late")
    assert node.time.clock() - began >= 5


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["back", "forward"])
def test_the_clock_is_set(make_node, seconds):
    """Nothing waits an hour longer, neither in this process nor in the next."""
    node = make_node("ecs.g7.large", cooldown=30)
    node.boot()
    node.burst(6)
    node.pool.release("pod-0")
    node.time.set_back(seconds)
    node.pool.release("pod-1")
    assert node.addresses("free") == (["192.168.1.2"] if seconds < 0 else [])
    node.time.advance(31)
    assert len(node.addresses("free")) == 2
    node.pool.release("pod-2")
    node.kill()
    node.time.set_back(7200)
    node.boot()
    node.time.advance(31)
    assert len(node.addresses("free")) == 3
    node.work(5)
    assert node.allocate("late").addresses


@pytest.mark.parametrize(
    ("settings", "use", "pods", "words"),
    [
        (
            {"instance_type": "ecs.g7.large"},
            "shared",
            12,
            r"instance type ecs.g7.large takes 2 ENIs, with 6 IPv4 addresses each, and all are used",
        ),
        (
            {"instance_type": "ecs.g7.large", "ip_stack": "dual"},
            "shared",
            12,
            r"instance type ecs.g7.large takes 2 ENIs, with 6 IPv4 and 6 IPv6 addresses each, and all are",
        ),
        ({"instance_type": "ecs.g7.large"}, "exclusive", 2, r"^no ENI is free: instance type ecs.g7.large"),
        ({"max_enis": 1}, "shared", 15, r"the 1 ENIs of pool.max_enis are used; delete pods or raise it"),
    ],
)
def test_a_node_that_is_full_says_so_at_once(make_node, settings, use, pods, words):
    node = make_node(**settings, wait=60)
    node.boot(use)
    node.burst(pods, use)
    began = time.monotonic()
    with pytest.raises(NoAddress, match=words) as refused:
        node.allocate("one too many", use)
    assert "waited" not in str(refused.value)
    assert time.monotonic() - began < 30
    assert node.changes()["CreateNetworkInterface"] <= 2


def test_a_denied_call_is_named_with_what_to_allow(make_node, account):
    node = make_node(wait=0.5)
    node.boot()
    account.fault("error", "CreateNetworkInterface", code="Forbidden.RAM")
    with pytest.raises(
        NoAddress, match=r"CreateNetworkInterface: Forbidden.RAM: .*Allow ecs:CreateNetworkInt"
    ):
        node.allocate("pod")
    # The seconds that passed were few to the caller, but many to the pool; it did not ask at every turn.
    tries = len(node.calls("CreateNetworkInterface"))
    node.forget_calls()
    node.work(600)
    assert node.calls("CreateNetworkInterface") == []  # nobody waits any more
    assert tries < 12
    account.clear()
    assert node.allocate("pod").addresses


def test_a_denied_call_is_not_repeated_at_once_to_keep_the_pool_warm(make_node, account):
    node = make_node(warm_min=1)
    account.fault("error", "CreateNetworkInterface", code="Forbidden.RAM")
    node.boot()
    node.work(600)
    assert 5 < len(node.calls("CreateNetworkInterface")) < 25
    account.clear()
    node.work(70)
    assert len(node.addresses("free")) == 1


def test_nothing_is_given_back_while_that_is_held(make_node):
    node = make_node(reclaim_after=10, cooldown=0)
    node.boot()
    node.burst(18)
    node.pool.hold(Holds(releasing=True))
    node.kill()
    node.boot()
    assert node.pool.holds == Holds(releasing=True)
    for number in range(18):
        node.pool.release(f"pod-{number}")
    node.work(100)
    assert len(node.tagged()) == 2
    assert node.burst(16, first=100)
    node.pool.hold(Holds())
    for number in range(100, 116):
        node.pool.release(f"pod-{number}")
    node.work(100)
    assert node.tagged() == []


def test_the_cloud_is_not_called_while_that_is_held(make_node):
    node = make_node(cooldown=5)
    node.boot()
    node.burst(2)
    node.pool.hold(Holds(calling=True))
    node.kill()
    node.boot()
    node.pool.release("pod-0")
    node.forget_calls()
    node.work(400, pace=10)
    node.allocate("pod-2")
    with pytest.raises(NoAddress, match="calls to the cloud are held; end that with: terway pool resume"):
        node.allocate("pod-3")
    assert node.calls() == []
    node.pool.hold(Holds())
    assert node.allocate("pod-3").addresses


def test_nobody_waits_for_a_call_that_is_held(make_node, account):
    node = make_node(warm_min=1)
    node.boot()
    account.fault("error", "CreateNetworkInterface", code="ServiceUnavailable")
    node.work(100)  # it will be tried again
    node.pool.hold(Holds(calling=True))
    with pytest.raises(NoAddress, match=r"^no address is free: calls to the cloud are held"):
        node.allocate("pod")


def test_a_grant_that_cannot_be_written_is_nobodys(make_node):
    node = make_node(warm_min=1)
    node.boot()
    node.work()
    node.store.write(
        lambda db: db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON eni_addresses BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    )
    with pytest.raises(StoreError, match="disk full"):
        node.pool.allocate("pod-1")
    assert len(node.addresses("free")) == 1
    node.store.write(lambda db: db.execute("DROP TRIGGER full"))
    assert node.pool.allocate("pod-2").addresses


def test_owners_that_nobody_knows_are_collected(make_node):
    node = make_node(warm_min=3)
    node.boot("shared", "exclusive")
    node.add_pod(1)
    node.add_pod(2, "exclusive")
    for owner, use in (("lost", "shared"), ("lost too", "exclusive"), ("alive", "shared")):
        node.allocate(owner, use)
    assert node.pool.collect(["alive"]) == ["addresses of lost", "addresses of lost too"]
    assert node.pool.collect(["alive"]) == []
    assert node.audit() == [
        f"enis: {row.address} of {grant.eni.eni_id} is owned by alive, which is in no row of the journal"
        for grant in [node.pool.allocate("alive")]
        for row in grant.addresses
    ]


def test_who_comes_back_while_his_old_address_is_collected_keeps_the_new_one(make_node, monkeypatch):
    node = make_node(warm_min=3)
    node.boot()
    node.allocate("back")
    ledger = node.pool._ledger
    journalled = ledger.journalled

    def come_back():
        node.pool.release("back")
        node.pool.allocate("back")

    thread = threading.Thread(target=come_back)

    def slowly():
        found = journalled()
        thread.start()
        thread.join(0.2)
        return found

    monkeypatch.setattr(ledger, "journalled", slowly)
    node.pool.collect([])
    thread.join()
    monkeypatch.undo()
    assert node.pool._rows.owners() == {"back"}


def test_a_time_that_comes_while_it_plans_is_not_slept_through(make_node):
    """Otherwise an ENI that has just been attached is looked at again half a minute later."""
    node = make_node(warm_min=3)
    node.boot()
    pool = node.pool
    looked = pool._clock()
    pool._supplier._not_before["of an ENI"] = looked + 0.2
    assert pool._pause(looked) == pytest.approx(0.2)
    node.time.advance(0.3)
    assert pool._pause(looked) == 0.01
    assert pool._pause(pool._clock()) > 1


def test_what_the_settings_must_not_say(make_node, account):
    far = account.add_vswitch("192.168.3.0/24", zone="cn-hangzhou-i")
    with pytest.raises(
        InvalidConfig, match=rf"none of the vSwitches {far.vswitch_id} is in this node's zone"
    ):
        make_node(vswitch_ids=(far.vswitch_id,)).boot()


def test_before_the_start_and_after_the_stop(make_node, account):
    node = make_node()
    node.boot()
    account.fault("stuck", "AttachNetworkInterface")
    future = node.ask("pod")
    while not node.pool.waiting():
        time.sleep(0.001)
    node.stop()
    with pytest.raises(RetryLater, match="is being stopped"):
        future.result()
    node.boot()


def test_many_pods_come_and_go_at_once(make_node, account):
    """With no rest between two owners, and with addresses given back whenever nobody waits."""
    account.behaviour.attach_delay = account.behaviour.detach_delay = 0.02
    node = make_node(cooldown=0, reclaim_after=0, warm_max=2, wait=60)
    pool = node.boot(threaded=True)
    lock = threading.Lock()
    in_use = set()

    def live(thread):
        for number in range(20):
            owner = f"pod-{thread}-{number}"
            address = pool.allocate(owner).addresses[0].address
            with lock:
                assert address not in in_use
                in_use.add(address)
            time.sleep(0.001 * (thread % 4))
            with lock:
                in_use.remove(address)
            assert pool.release(owner)

    with ThreadPoolExecutor(16) as threads:
        for future in [threads.submit(live, thread) for thread in range(16)]:
            future.result()
    assert node.addresses("used") == []
    while len(node.addresses("free")) > 2 or set(node.states()) - {"ready"}:
        time.sleep(0.01)
    assert node.in_cloud() == node.in_rows()
    assert node.audit() == []


# -- what Kubernetes is told ------------------------------------------------------------------------------


def test_a_pool_with_room_is_not_short(make_node):
    node = make_node()
    pool = node.boot("shared", "exclusive")
    assert pool.shortages() == []  # nothing is there, but it can be had
    node.allocate("pod-1")
    assert pool.shortages() == []


def test_a_full_vswitch_is_a_shortage_until_somebody_leaves(make_node, account):
    small = account.add_vswitch("192.168.2.0/28")  # 12 are usable
    node = make_node(vswitch_ids=(small.vswitch_id,), cooldown=0)
    pool = node.boot()
    node.burst(12)
    with pytest.raises(NoAddress):
        node.allocate("pod-12")
    (shortage,) = pool.shortages()
    assert small.vswitch_id in shortage
    pool.release("pod-0")
    assert pool.shortages() == []


def test_held_calls_are_a_shortage_of_a_pool_without_a_free_address(make_node):
    node = make_node()
    pool = node.boot()
    node.allocate("pod-1")
    pool.hold(Holds(calling=True))
    (shortage,) = pool.shortages()
    assert "held" in shortage


def test_capacity_is_what_is_there_and_what_there_is_place_for(make_node):
    node = make_node(max_enis=3, instance_type="ecs.g7.4xlarge")
    pool = node.boot("shared", "exclusive")
    assert pool.capacity() == 3
    node.allocate("pod-1", "exclusive")
    assert pool.capacity() == 3
    node.allocate("pod-2")  # makes an ENI that pods share
    assert pool.capacity() == 2


def test_an_eni_of_its_own_is_no_address_to_share(make_node):
    node = make_node("ecs.g7.large", warm_enis=1)
    pool = node.boot("shared", "exclusive")
    node.work()
    node.burst(6)
    (shortage,) = pool.shortages()
    assert shortage.startswith("no address is free: instance type ecs.g7.large takes 2 ENIs")
    assert pool.allocate("own", "exclusive").eni.eni_id
    assert [text.split(" is free")[0] for text in pool.shortages()] == ["no ENI", "no address"]
