"""Everything that can happen to a node, and what must hold after each of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from terway_core.eni.model import Holds, Use
from terway_core.errors import RetryLater
from terway_core.lab.api import NetworkInterface
from terway_core.record import State
from terway_core.testing.fakes import make_attachment
from terway_core.types import IPAddress

from .harness import Account, Fuse, Killed, Node, addresses_of

PODS = 45
REFUSALS = (
    "Throttling",
    "ServiceUnavailable",
    "Forbidden.RAM",
    "InternalError",
    "InvalidVSwitchId.IpNotEnough",
)
ACTIONS = (
    "*",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "AssignPrivateIpAddresses",
    "AssignIpv6Addresses",
    "UnassignPrivateIpAddresses",
    "UnassignIpv6Addresses",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "DescribeNetworkInterfaces",
    "DescribeVSwitches",
)


class Chaos:
    """A node, what its pods were told they have, and what meddlers took from them.

    :ivar held: the addresses of each pod that runs, by its number.
    :ivar taken: addresses that the cloud no longer has, through no fault of the pool.
    """

    def __init__(self, account: Account, path: Path, **settings: Any) -> None:
        self.account = account
        self.region = account.region
        near = account.vswitch.vswitch_id
        far = next(v.vswitch_id for v in self.region.vswitches.values() if v is not account.vswitch)
        self.node = Node(
            account,
            path,
            "ecs.g7.xlarge",
            vswitch_ids=(near, far),
            cooldown=20,
            reclaim_after=30,
            reconcile_interval=120,
            warm_min=2,
            warm_max=5,
            wait=0.15,
            **settings,
        )
        self.held: dict[int, set[IPAddress]] = {}
        self.taken: set[IPAddress] = set()
        self.foreign: list[NetworkInterface] = []
        self._boot()

    # -- pods ---------------------------------------------------------------------------------------------

    def add(self, number: int, use: Use = "shared") -> None:
        if number in self.held:
            return
        try:
            grant = self._living(lambda: self.node.add_pod(number, use))
        except RetryLater:
            return
        if grant:
            self.held[number] = {row.address for row in grant.addresses}

    def delete(self, number: int) -> None:
        # The runtime repeats it until it is answered.
        while self.node.store.get(make_attachment(number).key):
            self._living(lambda: self.node.delete_pod(number))
        self.held.pop(number, None)

    def wait(self, seconds: float) -> None:
        self._living(lambda: self.node.work(seconds, pace=max(1.0, seconds / 10)))

    # -- the process and the node -------------------------------------------------------------------------

    def kill(self) -> None:
        self.node.kill()
        self._boot()

    def die_soon(self, points: int) -> None:
        """At one of the next calls or writes."""
        fuse = self.node.fuse
        fuse.blow_at = len(fuse.passed) + points

    def reboot(self) -> None:
        """No sandbox is left, and links come late."""
        self.node.without_link.add("*")
        self.kill()
        for number in list(self.held):
            self.delete(number)
        self.wait(5)
        self.node.without_link.clear()

    def lose_journal(self) -> None:
        self.account.clear()  # without either the journal or the API there is nothing to start from
        self.node.lose_journal()
        self._boot()

    def set_clock(self, seconds: float) -> None:
        self.node.time.set_back(seconds)

    def hold(self, releasing: bool, calling: bool) -> None:
        self._living(lambda: self.node.pool.hold(Holds(releasing=releasing, calling=calling)))

    # -- the cloud and its other users --------------------------------------------------------------------

    def fault(self, kind: str, action: str, code: str = "", times: int | None = None) -> None:
        if kind == "stuck" and not action.startswith(("Attach", "Detach", "Delete")):
            action = "DetachNetworkInterface"
        self.account.fault(kind, action, times=times, **({"code": code} if kind == "error" else {}))

    def take_address(self, number: int) -> None:
        """An address of one of our ENIs disappears."""
        choice = [(eni, one) for eni in self.node.tagged() for one in eni.secondary_ips]
        if choice:
            eni, address = choice[number % len(choice)]
            rest = tuple(one for one in eni.secondary_ips if one != address)
            self.region.put_interface(replace(eni, secondary_ips=rest))
            self.taken.add(address)

    def take_eni(self, number: int) -> None:
        """One of our ENIs disappears."""
        choice = [eni for eni in self.node.tagged() if eni.status in ("InUse", "Available")]
        if choice:
            eni = choice[number % len(choice)]
            self.region.drop_interface(eni)
            self.taken |= addresses_of(eni)

    def detach_eni(self, number: int) -> None:
        """Somebody detaches one of our ENIs."""
        choice = [eni for eni in self.node.tagged() if eni.status == "InUse"]
        if choice:
            eni = choice[number % len(choice)]
            self.region.put_interface(replace(eni, status="Available", instance_id=""))

    def add_foreign(self) -> None:
        """Somebody attaches an ENI of his own, if there is place."""
        if len(self.node.enis()) < 4 and not self.foreign:
            vswitch = self.account.vswitch
            eni = self.region.add_interface(
                vswitch,
                type="Secondary",
                private_ip=next(self.region.free_ipv4(vswitch)),
                security_group_ids=(),
                tags={"creator": "somebody"},
            )
            mine = replace(eni, status="InUse", instance_id=self.node.instance.instance_id)
            self.foreign.append(self.region.put_interface(mine))

    def remove_foreign(self) -> None:
        while self.foreign:
            self.region.drop_interface(self.foreign.pop())

    # -- what must hold -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Never one address on two pods, and what a pod has is there unless it was taken."""
        owners = self._owners()
        seen: dict[IPAddress, int] = {}
        in_cloud = {address for eni in self.node.tagged() for address in addresses_of(eni)}
        for number, addresses in self.held.items():
            for address in addresses:
                assert seen.setdefault(address, number) == number, f"{address} is given to two pods"
                owner = str(make_attachment(number).key)
                # The row of an address that was taken may be gone with its exclusive ENI.
                assert owners.get(address) == owner or address in self.taken, f"{address} was lost"
                assert address in in_cloud | self.taken, f"{address} of {owner} is not in the cloud"
        for eni in self.foreign:
            assert self.region.network_interfaces[eni.network_interface_id] == eni

    def finish(self) -> None:
        """With all faults gone, cloud, rows and owners agree some time later."""
        self.account.clear()
        self.node.fuse.blow_at = 0
        self.node.without_link.clear()
        self.hold(False, False)
        for number in [number for number, addresses in self.held.items() if addresses & self.taken]:
            self.delete(number)
        self.wait(400)
        self.node.work(1200, pace=5)
        self.check()
        assert self.node.pool.problems == []
        assert self.node.in_cloud() == self.node.in_rows()
        assert self.node.audit() == []
        assert set(self.node.states()) <= {"ready"}
        for number in list(self.held):
            self.delete(number)
        self.node.work(600, pace=5)
        assert self.node.audit() == []
        free = Counter(ip_address(address).version for address in self.node.addresses("free"))
        kept = 5 if not self.node.settings.get("prefix_mode") else 5 + 15  # a prefix goes whole or stays
        assert min(free[family] for family in self.node.pool.families) <= kept

    def close(self) -> None:
        self.account.clear()
        self.node.close()
        self.remove_foreign()
        for eni in self.node.tagged():
            self.region.drop_interface(eni)

    def _owners(self) -> dict[IPAddress, str]:
        return {
            ip_address(row["address"]): row["owner"] or eni["owner"]
            for eni in self.node.pool.describe()
            for row in eni["addresses"]
        }

    def _boot(self) -> None:
        """Start the process, as often as it takes."""
        while True:
            try:
                self.node.boot("shared", "exclusive", fuse=Fuse())
                self.node.recover()
                break
            except RetryLater:
                self.node.kill()
                self.account.clear()
        for record in self.node.store.records():
            number = int(record.attachment.container_id, 16)
            if record.state is State.READY and number not in self.held:  # its answer was lost
                self.held[number] = {address.ip for address in record.lease.addresses}

    def _living(self, act: Callable[[], Any]) -> Any:
        """The process may die meanwhile; then it is started again."""
        try:
            result = act()
            self.node.fuse.check()
        except Killed:
            self.kill()
            return None
        return result


def happen(chaos: Chaos, dice: random.Random) -> str:
    """One round; returns what it was."""
    number = dice.randrange(PODS)
    use: Use = "exclusive" if dice.random() < 0.1 else "shared"
    seconds = dice.choice((1, 5, 20, 60, 200))
    choices: list[tuple[float, str, Callable[[], None]]] = [
        (30, "add", lambda: chaos.add(number, use)),
        (22, "delete", lambda: chaos.delete(number)),
        (18, "wait", lambda: chaos.wait(seconds)),
        (4, "kill", chaos.kill),
        (5, "die soon", lambda: chaos.die_soon(dice.randrange(1, 12))),
        (0.5, "reboot", chaos.reboot),
        (0.7, "lose the journal", chaos.lose_journal),
        (1, "set the clock", lambda: chaos.set_clock(dice.choice((-4000, -60, 60, 4000)))),
        (1, "hold", lambda: chaos.hold(dice.random() < 0.5, dice.random() < 0.3)),
        (3, "resume", lambda: chaos.hold(False, False)),
        (
            8,
            "fault",
            lambda: chaos.fault(
                dice.choice(("error", "lost", "down", "stuck")),
                dice.choice(ACTIONS),
                dice.choice(REFUSALS),
                dice.choice((1, 2, 5, None)),
            ),
        ),
        (6, "clear", chaos.account.clear),
        (1.5, "take an address", lambda: chaos.take_address(dice.randrange(99))),
        (0.5, "take an ENI", lambda: chaos.take_eni(dice.randrange(9))),
        (0.7, "detach an ENI", lambda: chaos.detach_eni(dice.randrange(9))),
        (1, "add a foreign ENI", chaos.add_foreign),
        (1, "remove foreign ENIs", chaos.remove_foreign),
    ]
    ((_, what, act),) = dice.choices(choices, [weight for weight, _, _ in choices])
    act()
    return what
