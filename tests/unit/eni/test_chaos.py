"""Random lives of a node: nobody shares an address, and in the end everything agrees."""

from __future__ import annotations

import os
import random

import pytest

from terway_core.lab.api import CALLS

from .chaos import Chaos, happen
from .harness import Account

#: Another seed is another run: TERWAY_TEST_SEED=7 pytest …
SEED = int(os.environ.get("TERWAY_TEST_SEED", "20261124"))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("rounds", "settings"),
    [(400, {}), (300, {"ip_stack": "dual"}), (300, {"prefix_mode": True})],
    ids=["ipv4", "dual stack", "prefixes"],
)
def test_a_thousand_random_rounds(tmp_path, capsys, rounds, settings):
    dice = random.Random(f"{SEED} {settings}")
    happened: list[str] = []
    account = Account("192.168.1.0/26")
    account.region.add_vswitch(account.vpc, "192.168.2.0/24", "cn-hangzhou-h", "2001:db8:1:2::/64")
    with account.served():
        chaos = Chaos(account, tmp_path / "terway.db", **settings)
        try:
            for _ in range(rounds):
                happened.append(happen(chaos, dice))
                chaos.check()
            chaos.finish()
        except BaseException as error:
            error.add_note(f"seed {SEED}, round {len(happened)}: … {', '.join(happened[-12:])}")
            raise
        finally:
            chaos.close()
    with capsys.disabled():
        print(f"\n  seed {SEED}: {rounds} rounds, {len(account.app[CALLS])} calls of the cloud")
