"""Faults of a running lab's cloud: put in, listed, taken out, from outside its network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from terway_core.lab.api import InjectedFault
from terway_core.lab.build import ask_region
from terway_core.lab.state import Lab, LabError


def inject(lab: Lab, fault: InjectedFault) -> InjectedFault:
    """Have the region behave so from now on.

    :raises LabError: no region answers, or it knows no such action.
    """
    answer = ask_region(lab, "POST", "/lab/faults", fault.model_dump())
    if "error" in answer:
        raise LabError(answer["error"])
    return InjectedFault.model_validate(answer)


def injected(lab: Lab) -> list[InjectedFault]:
    """What the region suffers from, oldest first; also what has had its time or its number of calls.

    :raises LabError: no region answers.
    """
    return _faults(ask_region(lab, "GET", "/lab/behaviour")["faults"])


def clear(lab: Lab, ids: Iterable[str] = ()) -> list[InjectedFault]:
    """Take out the faults with these ids, or all; what they keep stuck goes on.

    :returns: those taken out.
    :raises LabError: no region answers.
    """
    query = urlencode([("id", one) for one in ids])
    return _faults(ask_region(lab, "DELETE", f"/lab/faults?{query}")["cleared"])


def _faults(items: list[dict[str, Any]]) -> list[InjectedFault]:
    return [InjectedFault.model_validate(item) for item in items]
