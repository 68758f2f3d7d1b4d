# SPDX-License-Identifier: GPL-2.0-only
"""Types of what the compiled check engine takes and returns."""
from __future__ import annotations

from typing import TypedDict

__all__ = ["Prefix", "Step"]

#: The first choices of a part of a search: what ``Exploration.split()`` returns and ``prefix=`` takes. Opaque.
Prefix = tuple[tuple[int, int, int, int, int, int, int, int], ...]


class Step(TypedDict):
    """A step of a replayed execution, as the engine recorded it (``struct step`` in kmm/check_types.h)."""

    step: int
    agent: int
    cpu: int
    op: str
    sub: int
    order: int
    width: int
    address: int
    object: str
    old: int
    new: int
    result: int
    newest: int
    reads_from: int
    stale: int
    choice: int
    pending: int
    frames: list[int]
    held: list[int]
