"""Work for all who wait is done at once, by one of them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from terway_core.batcher import Batcher


@pytest.fixture
def held():
    """A batcher whose first batch, ``[0]``, waits for ``go_on``, with the batches that it has worked at."""
    go_on, begun, batches = threading.Event(), threading.Event(), []

    def work(batch):
        batches.append(list(batch))
        begun.set()
        go_on.wait(10)
        if "bad" in batch:
            raise ValueError("bad")

    batcher = Batcher(work)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(batcher.do, 0)
        assert begun.wait(10)
        yield batcher, pool, go_on, batches
        go_on.set()
        first.result()


def line_up(batcher, pool, items):
    futures = []
    for number, item in enumerate(items, 1):
        futures.append(pool.submit(batcher.do, item))
        while len(batcher) < number:
            threading.Event().wait(0.001)
    return futures


def test_those_who_wait_are_one_batch_in_their_order(held):
    batcher, pool, go_on, batches = held
    futures = line_up(batcher, pool, range(1, 11))
    go_on.set()
    assert [future.result() for future in futures] == [None] * 10
    assert batches == [[0], [*range(1, 11)]]
    batcher.do(11)
    assert batches[2:] == [[11]]


def test_what_the_work_raises_all_of_its_batch_raise_and_nobody_else(held):
    batcher, pool, go_on, batches = held
    futures = line_up(batcher, pool, [1, "bad", 2])
    go_on.set()
    assert [str(future.exception()) for future in futures] == ["bad"] * 3
    batcher.do(3)
    assert batches[-1] == [3]


def test_each_of_many_is_worked_at_once():
    done, running = [], threading.Semaphore(1)

    def work(batch):
        assert running.acquire(blocking=False)
        done.extend(batch)
        running.release()

    batcher = Batcher(work)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(batcher.do, range(5000)))
    assert sorted(done) == list(range(5000))
    assert len(batcher) == 0
