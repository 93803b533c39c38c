"""Who may work when. No test waits for a time: threads are seen standing in line before anything goes on."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terway_core.daemon.queue import Cancellation, SandboxLocks, WorkQueue
from terway_core.errors import RetryLater, Superseded

FOREVER = 60.0


class Worker:
    """A thread that takes a place and keeps it until it is told to leave."""

    def __init__(self, queue, name="", log=None, **options):
        self.inside, self._leave = threading.Event(), threading.Event()
        self.problem = None
        before = len(queue)

        def work():
            try:
                with queue.place(timeout=FOREVER, **options):
                    if log is not None:
                        log.append(name)
                    self.inside.set()
                    assert self._leave.wait(FOREVER)
            except Exception as error:
                self.problem = error
                self.inside.set()

        self.thread = threading.Thread(target=work)
        self.thread.start()
        while not (self.inside.is_set() or len(queue) > before):
            pause()

    def leave(self):
        self._leave.set()
        self.thread.join()


def pause():
    threading.Event().wait(0.001)


# -- places -----------------------------------------------------------------------------------------------


def test_no_more_work_than_there_are_places():
    queue = WorkQueue(3)
    workers = [Worker(queue) for _ in range(5)]
    assert [worker.inside.is_set() for worker in workers] == [True] * 3 + [False] * 2
    assert len(queue) == 2
    workers[1].leave()
    assert workers[3].inside.wait(FOREVER)
    assert not workers[4].inside.is_set()
    for worker in workers:
        worker.leave()
    assert len(queue) == 0


def test_the_line_is_served_in_the_order_of_arrival():
    queue, log = WorkQueue(1), []
    workers = [Worker(queue, name, log) for name in range(10)]
    for worker in workers:
        worker.inside.wait(FOREVER)
        worker.leave()
    assert log == list(range(10))


@given(workers=st.integers(1, 4), tasks=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_the_bound_holds_and_everybody_is_served(workers, tasks):
    queue, guard = WorkQueue(workers), threading.Lock()
    active, most, served = 0, 0, 0

    def work():
        nonlocal active, most, served
        with queue.place(timeout=FOREVER):
            with guard:
                active += 1
                most = max(most, active)
            pause()
            with guard:
                active -= 1
                served += 1

    threads = [threading.Thread(target=work) for _ in range(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == tasks
    assert most <= workers


def test_a_place_is_free_again_after_an_exception():
    queue = WorkQueue(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="no"), queue.place(timeout=FOREVER):
            raise ValueError("no")
    with queue.place(timeout=0):
        pass


def test_who_waits_too_long_is_sent_away_and_holds_nobody_up():
    queue = WorkQueue(1)
    first = Worker(queue)
    with pytest.raises(RetryLater, match=r"within 0\.01 s, 1 are in line"), queue.place(timeout=0.01):
        pass
    assert len(queue) == 0
    second = Worker(queue)
    first.leave()
    assert second.inside.wait(FOREVER)
    second.leave()


def test_cancelled_in_line():
    queue, cancellation = WorkQueue(1), Cancellation()
    first = Worker(queue)
    second = Worker(queue, cancellation=cancellation)
    third = Worker(queue)
    cancellation.cancel()
    second.thread.join()
    assert isinstance(second.problem, Superseded)
    assert len(queue) == 1  # the third, whose turn is next
    first.leave()
    assert third.inside.wait(FOREVER)
    third.leave()


def test_cancelled_before_it_comes():
    cancellation = Cancellation()
    cancellation.cancel()
    queue = WorkQueue(1)
    with pytest.raises(Superseded), queue.place(timeout=FOREVER, cancellation=cancellation):
        pass
    with queue.place(timeout=0):
        pass


def test_cancelled_at_work_is_noticed_between_steps():
    cancellation = Cancellation()
    with WorkQueue(1).place(timeout=0, cancellation=cancellation):
        cancellation.check()
        cancellation.cancel()
        assert cancellation.is_set
        with pytest.raises(Superseded):
            cancellation.check()


def test_who_waits_for_something_else_gives_way_and_comes_back_first():
    queue, log = WorkQueue(1), []
    aside, back, is_back = threading.Event(), threading.Event(), threading.Event()

    def work():
        with queue.place(timeout=FOREVER):
            with queue.aside():
                aside.set()
                assert back.wait(FOREVER)
            log.append("back")
            is_back.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert aside.wait(FOREVER)
    second, third = Worker(queue, "second", log), Worker(queue, "third", log)
    assert second.inside.is_set()
    back.set()
    while len(queue) < 2:
        pause()
    assert not is_back.is_set()
    second.leave()
    third.leave()
    thread.join()
    assert log == ["second", "back", "third"]


def test_waiting_is_measured():
    waited = []
    queue = WorkQueue(1, waited=waited.append)
    assert queue.longest_wait() == 0
    first = Worker(queue)
    second = Worker(queue)
    pause()
    assert queue.longest_wait() > 0
    first.leave()
    second.leave()
    with queue.place(timeout=0), pytest.raises(RetryLater), queue.place(timeout=0):
        pass
    assert len(waited) == 4
    assert waited[1] > 0


# -- locks ------------------------------------------------------------------------------------------------


def hold(locks, *names):
    """A thread that holds ``names``; set the event to let it go."""
    held, let_go = threading.Event(), threading.Event()

    def work():
        with locks.hold(*names):
            held.set()
            assert let_go.wait(FOREVER)

    thread = threading.Thread(target=work)
    thread.start()
    return held, let_go, thread


def test_one_at_a_time_for_a_name_and_side_by_side_for_others():
    locks = SandboxLocks()
    first, let_first_go, first_thread = hold(locks, "a", "b")
    second, let_second_go, second_thread = hold(locks, "b", "c")
    other, let_other_go, other_thread = hold(locks, "d")
    assert first.wait(FOREVER)
    assert other.wait(FOREVER)
    assert not second.is_set()
    let_first_go.set()
    assert second.wait(FOREVER)
    for event in (let_second_go, let_other_go):
        event.set()
    for thread in (first_thread, second_thread, other_thread):
        thread.join()


def test_a_name_given_twice_is_locked_once():
    with SandboxLocks().hold("a", "a"):
        pass


def test_who_waits_for_the_first_name_holds_none_of_the_later():
    """That is what keeps any number of waiters from waiting for one another in a ring."""
    locks = SandboxLocks()
    first, let_first_go, first_thread = hold(locks, "a")
    assert first.wait(FOREVER)
    waiting, let_waiting_go, waiting_thread = hold(locks, *"hgfedcba")
    while "a" not in locks._locks or locks._locks["a"][1] < 2:
        pause()
    with locks.hold(*"bcdefgh"):
        assert not waiting.is_set()
    let_first_go.set()
    let_waiting_go.set()
    first_thread.join()
    waiting_thread.join()


names = st.lists(st.sampled_from("abcde"), max_size=4)


@given(st.lists(names, min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_overlapping_names_never_block_for_good(holders):
    locks, active, clashes = SandboxLocks(), dict.fromkeys("abcde", 0), []

    def work(mine):
        for _ in range(5):
            with locks.hold(*mine):
                for name in set(mine):
                    active[name] += 1
                    clashes.extend([name] if active[name] > 1 else [])
                pause()
                for name in set(mine):
                    active[name] -= 1

    threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOREVER)
        assert not thread.is_alive()
    assert clashes == []
    assert not locks._locks  # nobody wants them any more


def test_locks_are_let_go_and_forgotten_after_an_exception():
    locks = SandboxLocks()
    with pytest.raises(ValueError, match="no"), locks.hold("a", "b"):
        raise ValueError("no")
    assert not locks._locks
    with locks.hold("a", "b"):
        assert set(locks._locks) == {"a", "b"}
