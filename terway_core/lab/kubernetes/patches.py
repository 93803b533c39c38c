"""The two ways to patch that clients use most."""

from __future__ import annotations

from typing import Any, Final

#: By which field the elements of a list are told apart in a strategic merge patch; other lists are replaced.
_KEYS: Final = {
    "conditions": "type",
    "containers": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "addresses": "type",
}


def merge(target: Any, patch: Any) -> Any:
    """``target`` with ``patch`` applied as RFC 7396 says; neither is changed."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def strategic(target: Any, patch: Any) -> Any:
    """As :func:`merge`, but lists whose elements have a key are merged element by element."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif name in _KEYS and isinstance(value, list):
            result[name] = _merge_list(result.get(name) or [], value, _KEYS[name])
        else:
            result[name] = strategic(result.get(name), value)
    return result


def _merge_list(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    result = list(target)
    for element in patch:
        index = next((i for i, old in enumerate(result) if old.get(key) == element.get(key)), None)
        if element.get("$patch") == "delete":
            if index is not None:
                del result[index]
        elif index is None:
            result.append(element)
        else:
            result[index] = strategic(result[index], element)
    return result
