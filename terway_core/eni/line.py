"""Those who wait for an address or an ENI, in the order in which they came."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from terway_core.eni.model import Use
from terway_core.eni.rows import Grant, Rows

#: Seconds for which a request waits for others of the same burst before the cloud is asked for it.
GATHER: Final = 0.05


class Ticket:
    """Somebody's place in the line."""

    def __init__(self, owner: str, use: Use) -> None:
        self.owner = owner
        self.use = use
        self.since = time.monotonic()
        self.grant: Grant | None = None
        self.hopeless = ""

    @property
    def settled(self) -> bool:
        """Served, or told that it cannot be."""
        return self.grant is not None or bool(self.hopeless)


class Line:
    """The waiting line; all of it under the lock of ``rows``."""

    def __init__(self, rows: Rows, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._clock = clock
        self._tickets: deque[Ticket] = deque()

    def __iter__(self) -> Iterator[Ticket]:
        return iter(tuple(self._tickets))

    def __len__(self) -> int:
        return len(self._tickets)

    def join(self, owner: str, use: Use) -> Ticket:
        """A place at the end; served at once if it is its turn and something is free."""
        ticket = Ticket(owner, use)
        self._tickets.append(ticket)
        self.serve()
        if not ticket.settled:
            self._rows.notify()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Wait no longer."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def serve(self) -> None:
        """Grant what is free, in the order in which they came; each use has its own line."""
        dry: set[Use] = set()
        for ticket in self:
            if ticket.use in dry:
                continue
            ticket.grant = self._rows.grant(ticket.owner, ticket.use, self._clock())
            if ticket.grant is None:
                dry.add(ticket.use)
            else:
                self._tickets.remove(ticket)
                self._rows.notify(urgent=False)

    def gathered(self) -> list[Ticket]:
        """Everybody, once the first has waited long enough for the others of a burst."""
        tickets = list(self._tickets)
        return tickets if tickets and time.monotonic() - tickets[0].since >= GATHER else []
