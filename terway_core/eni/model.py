"""What the pool keeps: rows of ENIs and of addresses, and the settings that bound them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, TypeAlias

from terway_core.types import IPAddress, IPNetwork

Use: TypeAlias = Literal["shared", "exclusive", "trunk"]
Family: TypeAlias = Literal[4, 6]


class EniState(StrEnum):
    """Where an ENI is between the call that makes it and the one that deletes it.

    A state is written before its calls are made; each step asks the cloud where the ENI really is, so a step
    that was interrupted is simply done again.
    """

    CREATING = "creating"
    ATTACHING = "attaching"
    READY = "ready"
    DETACHING = "detaching"
    DELETING = "deleting"


@dataclass(frozen=True, kw_only=True, slots=True)
class Eni:
    """One ENI of this node.

    :param token: what we know it by before it has an id; also the ClientToken and a tag of its creation.
    :param use: ``shared``: pods get its addresses; ``exclusive``: one pod gets it; ``trunk``: others' ENIs
        are its members.
    :param ipv4: secondary addresses, or prefixes, asked for at its creation; a call that is made again must
        ask for the same. ``ipv6`` likewise.
    :param since: when it came into its state, in seconds since the epoch.
    :param owner: of an exclusive ENI, the attachment that has it; ``""`` when it is free.
    :param rests_until: an exclusive ENI that came back is not given out before.
    :param problem: why it is not where it should be, for people.
    """

    token: str
    use: Use
    state: EniState
    vswitch_id: str
    security_group_ids: tuple[str, ...]
    since: float
    ipv4: int = 0
    ipv6: int = 0
    eni_id: str = ""
    mac: str = ""
    cidr: IPv4Network | None = None
    ipv6_cidr: IPv6Network | None = None
    owner: str = ""
    rests_until: float = 0.0
    problem: str = ""

    @property
    def name(self) -> str:
        """For people: its id once it has one."""
        return self.eni_id or f"new ENI {self.token[:8]}"

    def gateway(self, family: int) -> IPAddress:
        """The vSwitch's gateway: the third address from the end of its CIDR.

        :raises LookupError: the vSwitch has no CIDR of that family.
        """
        cidr = self.cidr if family == 4 else self.ipv6_cidr
        if cidr is None:
            raise LookupError(f"vSwitch {self.vswitch_id} of {self.name} has no IPv{family} CIDR")
        return cidr[-3]


@dataclass(frozen=True, kw_only=True, slots=True)
class EniAddress:
    """One address of a shared ENI.

    :param block: the prefix it was assigned with; None for one assigned by itself.
    :param primary: goes only with its ENI.
    :param owner: the attachment that has it, ``""`` when it is free or rests.
    :param leaving: will not be given out again: it is being unassigned, or the cloud says that it is gone and
        only its owner, who still has it, keeps its row.
    """

    token: str
    address: IPAddress
    block: IPNetwork | None = None
    primary: bool = False
    owner: str = ""
    rests_until: float = 0.0
    leaving: bool = False

    def free(self, now: float) -> bool:
        """May be given out."""
        return not self.owner and not self.leaving and self.rests_until <= now


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the instance type allows.

    :param enis: ENIs besides the primary one.
    :param ipv4: IPv4 addresses of one ENI, its primary included; a prefix counts as one.
    :param members: ENIs on a trunk; 0 if it takes no trunk.
    """

    instance_type: str
    enis: int
    ipv4: int
    ipv6: int
    members: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Holds:
    """The operator's switches for bad days: give nothing back to the cloud; ask it for nothing at all."""

    releasing: bool = False
    calling: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """How we know our own ENIs again. Set in the create call, so that none is ever without them."""

    cluster: str
    instance_id: str
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> dict[str, str]:
        """What every ENI of ours carries, and what is looked for."""
        return {"creator": "terway", "terway.cluster": self.cluster, "terway.instance": self.instance_id}

    def of(self, token: str, use: Use) -> dict[str, str]:
        """All tags of a new ENI."""
        return {**self.extra, **self.ours, TOKEN_TAG: token, USE_TAG: use}


TOKEN_TAG = "terway.token"
USE_TAG = "terway.use"
