"""From the flat pairs of a query or a form to the typed parameters of an action.

Lists travel as ``Name.1``, ``Name.2``, objects as ``Name.1.Key``; indices may have gaps, and booleans any
case (clients send ``True``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_pascal

from terway_core.lab.api.faults import invalid_parameter, missing_parameter

#: ``RouteEntries.1.DstCidrBlock`` has 3 parts and no parameter has more than 5.
_MAX_DEPTH: Final = 8

ClientToken = Annotated[str, Field(max_length=64, pattern=r"^[\x20-\x7e]*$")]


class Request(BaseModel):
    """Base of all actions' parameters: snake case here, Pascal case on the wire, unknown ones ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_pascal)


RequestT = TypeVar("RequestT", bound=Request)


def decode(model: type[RequestT], pairs: Iterable[tuple[str, str]]) -> RequestT:
    """The parameters of one call.

    :raises Fault: MissingParameter or InvalidParameter, naming the first parameter at fault.
    """
    try:
        return model.model_validate(unflatten(pairs))
    except ValidationError as error:
        first = error.errors()[0]
        # pydantic counts list items from 0, the wire from 1.
        name = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
        raise (
            missing_parameter(name) if first["type"] == "missing" else invalid_parameter(name, first["msg"])
        ) from None


def unflatten(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """``[("A.1.K", "x"), ("A.3.K", "y")]`` becomes ``{"A": [{"K": "x"}, {"K": "y"}]}``."""
    tree: dict[str, Any] = {}
    for key, value in pairs:
        *parents, leaf = key.split(".", _MAX_DEPTH)
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise invalid_parameter(key, f"{part} is already a value")
        if isinstance(node.get(leaf), dict):
            raise invalid_parameter(key, "it is already a structure")
        node[leaf] = value
    return {name: _with_lists(value) for name, value in tree.items()}


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if all(part.isascii() and part.isdigit() for part in node):
        return [_with_lists(node[index]) for index in sorted(node, key=int)]
    return {name: _with_lists(value) for name, value in node.items()}
