# SPDX-License-Identifier: GPL-2.0-only
"""Small programs for the check engine: litmus tests and counting examples."""
from collections.abc import Mapping, Sequence
from typing import Any, Self

from typing_extensions import disjoint_base

from pykmm_ext.engine.check import Program

OPCODES: dict[str, int]
ORDERS: dict[str, int]
RMWS: dict[str, int]
FENCES: dict[str, int]

@disjoint_base
class Litmus(Program):
    def __new__(
        cls, threads: Sequence[Sequence[Mapping[str, Any]]], *, initial: Sequence[int] = (), words: int = 64,
        observe: Sequence[tuple[int | str, int]] = (), plain: bool = False, open_spinlocks: bool = False,
    ) -> Self: ...
