"""Leader election: one leads, somebody always does, and nobody leads beyond its time."""

import threading
import time
from contextlib import contextmanager

import pytest

from terway_core.kube import LEASES, Election
from tests.unit.kube_server import ApiServer, wait_for

#: Short, and far enough apart for a busy machine.
TIMES = {"duration": 2.0, "deadline": 1.2, "period": 0.1}


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


class Candidate:
    """Counts itself among the leaders while it leads."""

    def __init__(self, server, identity, leaders, **times):
        self.identity = identity
        self.leaders = leaders
        self.terms = 0
        self.stop = threading.Event()
        self.fail = False
        self.resign = threading.Event()
        self.client = server.client()
        election = Election(self.client, "kube-system", "terway", identity, **(TIMES | times))
        self.thread = threading.Thread(target=election.run, args=(self.lead, self.stop))
        self.thread.start()

    def lead(self, over):
        self.terms += 1
        self.leaders.append(self.identity)
        try:
            if self.fail:
                raise RuntimeError("a bug")
            while not over.is_set() and not self.resign.is_set():
                time.sleep(0.01)
        finally:
            self.leaders.remove(self.identity)

    def end(self):
        self.stop.set()
        self.thread.join(20)
        self.client.close()


@contextmanager
def candidates(server, *identities, **times):
    leaders = []
    found = [Candidate(server, identity, leaders, **times) for identity in identities]
    try:
        yield leaders, {one.identity: one for one in found}
    finally:
        for one in found:
            one.end()


def holder(server):
    return server.objects.get(LEASES, "terway", "kube-system")["spec"]["holderIdentity"]


def test_one_of_two_leads_and_the_other_follows_at_once(server):
    # Far longer than the test waits: the Lease must be given away.
    with candidates(server, "a", "b", duration=600, deadline=500) as (leaders, found):
        wait_for(lambda: leaders)
        first = leaders[0]
        for _ in range(30):
            assert leaders == [first]
            time.sleep(0.01)
        found[first].end()
        second = wait_for(lambda: leaders)[0]
        assert second != first
        assert holder(server) == second
        spec = server.objects.get(LEASES, "terway", "kube-system")["spec"]
        assert spec["leaseTransitions"] == 1


def test_a_dead_leader_is_replaced(server):
    server.objects.create(
        LEASES, {"metadata": {"name": "terway"}, "spec": {"holderIdentity": "dead"}}, "kube-system"
    )
    begun = time.monotonic()
    with candidates(server, "a") as (leaders, _):
        wait_for(lambda: leaders)
        assert time.monotonic() - begun >= TIMES["duration"]


def test_nobody_leads_when_the_server_is_away_for_long(server):
    with candidates(server, "a", "b") as (leaders, found):
        wait_for(lambda: leaders)
        with server.away():
            wait_for(lambda: not leaders)
        wait_for(lambda: leaders)
        assert len(leaders) == 1
        assert sum(one.terms for one in found.values()) == 2


def test_a_short_outage_changes_nothing(server):
    with candidates(server, "a", duration=20, deadline=15) as (leaders, found):
        wait_for(lambda: leaders)
        with server.away():
            time.sleep(0.3)
        renewed = server.objects.get(LEASES, "terway", "kube-system")["spec"]["renewTime"]
        wait_for(lambda: server.objects.get(LEASES, "terway", "kube-system")["spec"]["renewTime"] != renewed)
        assert found["a"].terms == 1


def test_a_leader_whose_lease_was_taken_stops(server):
    with candidates(server, "a") as (leaders, _):
        wait_for(lambda: leaders)
        server.objects.patch(LEASES, "terway", {"spec": {"holderIdentity": "thief"}}, "kube-system")
        wait_for(lambda: not leaders)
        assert holder(server) == "thief"


def test_leading_that_fails_or_ends_gives_the_lease_away(server):
    with candidates(server, "a") as (leaders, found):
        wait_for(lambda: leaders)
        found["a"].fail = True
        found["a"].resign.set()
        wait_for(lambda: found["a"].terms > 1)
        found["a"].stop.set()
        wait_for(lambda: holder(server) == "")
