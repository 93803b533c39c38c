"""The two ways in which the service cuts long lists: numbered pages and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import Field

from terway_core.lab.api.params import Request

T = TypeVar("T")


class NumberedPage(Request):
    """``PageNumber`` from 1 and ``PageSize``, at most 50 in the VPC product."""

    page_number: int = Field(1, ge=1)
    page_size: int = Field(10, ge=1, le=50)

    def cut(self, items: Sequence[T]) -> tuple[Sequence[T], dict[str, Any]]:
        """The items of this page, and the counters that the reply carries."""
        start = (self.page_number - 1) * self.page_size
        counters = {"PageNumber": self.page_number, "PageSize": self.page_size, "TotalCount": len(items)}
        return items[start : start + self.page_size], counters


def token_page(items: Iterable[T], key: Callable[[T], str], token: str, size: int) -> tuple[list[T], str]:
    """The ``size`` items after ``token`` and the token of the next page, ``""`` at the end.

    A token is the last key shown, so that what is removed between two pages hides nothing else.
    """
    rest = sorted((item for item in items if key(item) > token), key=key)
    return rest[:size], key(rest[size - 1]) if len(rest) > size else ""
