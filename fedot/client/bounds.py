"""How large a value of an update may be: the same bounds at a site and at the server.

A payload may hold far larger values than any training moves a parameter by. The server squares
means of updates (Adam), and what it remembers must fit into its journal, so it counts no update
with a value above `LARGEST_COUNTED`. Sites stay below by a factor of two, since a lossy chain may
round a value up, so an honest update is never refused for its size.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

__all__ = ["LARGEST_COUNTED", "LARGEST_SENT", "are_within"]

LARGEST_COUNTED = 2.0**19
"""No larger value is counted: its square is half of what a payload of the journal may hold."""

LARGEST_SENT = 2.0**18
"""Nor sent: far above any update that trains."""


def are_within(tensors: Iterable[Tensor], bound: float) -> bool:
    """Is every value finite and at most `bound` in size?"""
    return all(bool((tensor.abs() <= bound).all()) for tensor in tensors)
