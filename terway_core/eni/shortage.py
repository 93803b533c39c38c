"""Why nothing is free, and whether waiting may help."""

from __future__ import annotations

from terway_core.eni.model import Eni, EniAddress, EniState, Use
from terway_core.eni.planner import Planner, View


def may_end(view: View, use: Use, within: float) -> bool:
    """Whether something is on its way, or comes free within so many seconds without anybody's doing."""
    soon = view.now + within
    for eni in view.enis.values():
        if eni.use != use or eni.problem:
            continue
        if eni.state in (EniState.CREATING, EniState.ATTACHING) and not view.holds.calling:
            return True
        resting: list[Eni | EniAddress] = [eni]
        if use == "shared":
            resting = [row for row in view.addresses.get(eni.token, ()) if not row.leaving]
        if any(not one.owner and view.now < one.rests_until <= soon for one in resting):
            return True
    return False


def is_short(view: View, planner: Planner, use: Use, within: float) -> bool:
    """Whether the next pod would wait in vain: nothing is free, on its way, or to be had."""
    ready = [eni for eni in view.enis.values() if eni.use == use and eni.state is EniState.READY]
    if use == "exclusive":
        free = any(not eni.owner and eni.rests_until <= view.now for eni in ready)
    else:
        free = any(planner.free(view, eni.token) for eni in ready)
    if free or may_end(view, use, within):
        return False
    to_be_had = planner.can_create(view, use) > 0 or (use == "shared" and planner.has_room(view))
    return view.holds.calling or not to_be_had or set(view.vswitches) <= view.exhausted


def explain(view: View, planner: Planner, use: Use, last_error: str) -> str:
    """The causes of a shortage, as far as they are known, and what to do."""
    limits = view.limits
    causes = []
    if view.holds.calling:
        causes.append("calls to the cloud are held; end that with: terway pool resume")
    if view.exhausted:
        causes.append(
            f"vSwitch {', '.join(sorted(view.exhausted))} has no free address; "
            "add a vSwitch of this zone to pool.vswitch_ids"
        )
    has_trunk = use == "trunk" and any(eni.use == "trunk" for eni in view.enis.values())
    if not (planner.can_create(view, use) or (use == "shared" and planner.has_room(view)) or has_trunk):
        each = f"{limits.ipv4} IPv4" + (f" and {limits.ipv6} IPv6" if 6 in planner.families else "")
        foreign = f", {view.foreign_enis} of them not terway's" if view.foreign_enis else ""
        if 0 < planner.max_enis < limits.enis - view.foreign_enis:
            causes.append(f"the {planner.max_enis} ENIs of pool.max_enis are used; delete pods or raise it")
        else:
            causes.append(
                f"instance type {limits.instance_type} takes {limits.enis} ENIs{foreign}, with {each} "
                "addresses each, and all are used; delete pods or take a larger type"
            )
    if last_error:
        causes.append(f"the last refusal was: {last_error}")
    what = {"shared": "address is free", "exclusive": "ENI is free", "trunk": "trunk ENI is attached"}[use]
    return f"no {what}: " + (
        "; ".join(causes) or ("it is on its way" if use == "trunk" else "none came free")
    )
