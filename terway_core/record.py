"""One attachment in the journal: what is known of it, and how that is written in a row."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter

from terway_core.types import Attachment, AttachmentKey, Lease
from terway_core.wiring.objects import Wiring

#: The columns of :data:`Row`.
COLUMNS = "attachment, driver, state, created, netns_id, lease, wiring, problem"
#: A record in the table, without what it is found by.
Row = tuple[str, str, str, float, int, str | None, str | None, str]

_attachment: TypeAdapter[Attachment] = TypeAdapter(Attachment)
_lease: TypeAdapter[Lease] = TypeAdapter(Lease)
_wiring: TypeAdapter[Wiring] = TypeAdapter(Wiring)


class State(StrEnum):
    """Where an attachment is on its way. A state is written before the work that it names begins."""

    ALLOCATING = "allocating"
    WIRING = "wiring"
    READY = "ready"
    UNWIRING = "unwiring"
    RELEASING = "releasing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row of the journal. A row that is gone is the last state.

    :param driver: the mode that served the ADD and therefore serves the DEL.
    :param created: seconds since the epoch.
    :param netns_id: tells the pod's namespace from a later one at the same path; 0 when it is not known.
    :param problem: why the last step failed; ``""`` when it did not.
    """

    attachment: Attachment
    driver: str
    state: State
    created: float
    netns_id: int = 0
    lease: Lease | None = None
    wiring: Wiring | None = None
    problem: str = ""

    @property
    def key(self) -> AttachmentKey:
        """What the runtime knows the attachment by."""
        return self.attachment.key

    @property
    def owner(self) -> str:
        """What its links on the host say they belong to: enough to take them in when the journal is lost."""
        return f"{self.driver}:{self.key}"


def encode(record: Record) -> Row:
    """A record as a row."""
    return _attachment.dump_json(record.attachment).decode(), *encode_rest(record)


def encode_rest(record: Record) -> tuple[str, str, float, int, str | None, str | None, str]:
    """A record as a row, but for the attachment, which does not change."""
    return (
        record.driver,
        record.state.value,
        record.created,
        record.netns_id,
        _lease.dump_json(record.lease).decode() if record.lease else None,
        _wiring.dump_json(record.wiring).decode() if record.wiring else None,
        record.problem,
    )


def decode(row: Row) -> Record:
    """What a row says.

    :raises ValueError: the row is damaged.
    """
    attachment, driver, state, created, netns_id, lease, wiring, problem = row
    return Record(
        attachment=_attachment.validate_json(attachment),
        driver=driver,
        state=State(state),
        created=created,
        netns_id=netns_id,
        lease=_lease.validate_json(lease) if lease else None,
        wiring=_wiring.validate_json(wiring) if wiring else None,
        problem=problem,
    )
