"""The queue of names."""

import threading

import pytest
from terway_driver_trunking.queue import KeyQueue

from terway_core.errors import RetryLater
from tests.unit.kube_server import wait_for


@pytest.fixture
def run():
    queues = []

    def start(look, workers=2):
        queue = KeyQueue("test", look, workers)
        queues.append(queue)
        queue.start()
        return queue

    yield start
    for queue in queues:
        queue.stop()


def test_each_name_once(run):
    looked = []
    go = threading.Event()

    def look(key):
        go.wait(20)
        looked.append(key)

    queue = run(look, workers=1)
    queue.add("first")
    for _ in range(5):
        queue.add("a")
        queue.add("b")
    go.set()
    wait_for(lambda: len(looked) == 3)
    queue.add("end")
    wait_for(lambda: "end" in looked)
    assert looked == ["first", "a", "b", "end"]


def test_one_worker_for_a_name(run):
    """What is added while it is worked on is looked at again, afterwards."""
    entered, go = threading.Semaphore(0), threading.Semaphore(0)
    at_work, most, looks = 0, 0, 0

    def look(key):
        nonlocal at_work, most, looks
        at_work += 1
        most = max(most, at_work)
        entered.release()
        go.acquire(timeout=20)
        at_work -= 1
        looks += 1

    queue = run(look)
    queue.add("a")
    assert entered.acquire(timeout=20)
    queue.add("a")
    assert not entered.acquire(timeout=0.05)  # though a worker is free
    go.release()
    assert entered.acquire(timeout=20)
    go.release()
    wait_for(lambda: looks == 2)
    assert most == 1


def test_another_name_does_not_wait(run):
    go = threading.Event()
    looked = []

    def look(key):
        if key == "slow":
            go.wait(20)
        looked.append(key)

    queue = run(look)
    queue.add("slow")
    queue.add("slow")
    queue.add("fast")
    wait_for(lambda: "fast" in looked)
    assert looked == ["fast"]
    go.set()


def test_again_after_a_while_and_after_a_failure(run):
    answers = [0.01, RetryLater("not now"), ValueError("a defect"), None]
    looked = []

    def look(key):
        looked.append(key)
        answer = answers[len(looked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    run(look).add("a")
    wait_for(lambda: len(looked) == 4)


def test_the_earlier_time_counts(run):
    looked = []
    queue = run(looked.append)
    queue.add("a", 3600)
    queue.add("a")
    queue.add("a", 3600)
    wait_for(lambda: looked == ["a"])


def test_a_stop_waits_for_what_is_under_way():
    go, entered = threading.Event(), threading.Event()
    looked = []

    def look(key):
        entered.set()
        go.wait(20)
        looked.append(key)

    queue = KeyQueue("test", look, 1)
    queue.start()
    queue.add("a")
    queue.add("b")
    assert entered.wait(20)
    threading.Timer(0.05, go.set).start()
    queue.stop()
    assert looked == ["a"]
