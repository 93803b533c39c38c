"""ClientToken: the same request again gets the first one's reply and changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from terway_core.lab.api.faults import Fault

#: How long a reply is kept, in seconds; the real time is not documented.
LIFETIME: Final = 24 * 3600


@dataclass
class _Kept:
    params: frozenset[tuple[str, str]]
    expires: float
    reply: dict[str, Any] | None = None


class ClientTokens:
    """The replies of calls that carried a token. A call that failed is forgotten and may be tried again."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], _Kept] = {}

    async def once(
        self,
        action: str,
        token: str,
        params: Iterable[tuple[str, str]],
        now: float,
        run: Callable[[], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        """The kept reply, or that of ``run``.

        :raises Fault: the token was used with other parameters, or its first call is still under way.
        """
        while self._kept and self._kept[oldest := next(iter(self._kept))].expires < now:
            del self._kept[oldest]
        wanted = frozenset(params)
        if kept := self._kept.get((action, token)):
            if kept.params != wanted:
                raise Fault(
                    400,
                    "IdempotentParameterMismatch",
                    "The request uses the same client token as a previous, but non-identical request.",
                )
            if kept.reply is None:
                raise Fault(403, "LastTokenProcessing", "The last token request is processing.")
            return kept.reply
        kept = self._kept[action, token] = _Kept(params=wanted, expires=now + LIFETIME)
        try:
            kept.reply = await run()
        except BaseException:
            del self._kept[action, token]
            raise
        return kept.reply
