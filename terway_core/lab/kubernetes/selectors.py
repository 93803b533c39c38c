"""Label and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]

#: ``key in (a, b)``, ``key notin (a)``, ``key=value``, ``key!=value``, ``key``, ``!key``; a comma follows.
_TERM: Final = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<no>[^\s,=!()]+)"
    r"|(?P<key>[^\s,=!()]+)\s*"
    r"(?:(?P<set>in|notin)\s*\((?P<values>[^)]*)\)|(?P<op>==|=|!=)\s*(?P<value>[^\s,]*))?)\s*(?:,|$)"
)


def parse(label_selector: str, field_selector: str) -> Predicate:
    """What an object must be.

    :raises ValueError: one of them is none.
    """
    labels = _terms(label_selector, lambda obj, key: (obj["metadata"].get("labels") or {}).get(key))
    fields = _terms(field_selector, _field)
    return lambda obj: all(term(obj) for term in (*labels, *fields))


def _terms(text: str, look: Callable[[Mapping[str, Any], str], str | None]) -> list[Predicate]:
    found: list[Predicate] = []
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is no selector")
        found.append(_term(match, look))
        position = match.end()
    return found


def _term(match: re.Match[str], look: Callable[[Mapping[str, Any], str], str | None]) -> Predicate:
    if match["absent"]:
        return lambda obj: look(obj, match["no"]) is None
    key = match["key"]
    if match["set"]:
        values = {value.strip() for value in match["values"].split(",")}
        if match["set"] == "in":
            return lambda obj: look(obj, key) in values
        return lambda obj: look(obj, key) not in values
    if match["op"] == "!=":
        return lambda obj: look(obj, key) != match["value"]
    if match["op"]:
        return lambda obj: look(obj, key) == match["value"]
    return lambda obj: look(obj, key) is not None


def _field(obj: Mapping[str, Any], path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)
