# SPDX-License-Identifier: GPL-2.0-only
from collections.abc import Sequence

from typing_extensions import disjoint_base

from pykmm_ext.engine.check import Program

SCENARIOS: dict[str, int]

@disjoint_base
class Primitives(Program):
    def __new__(cls, scenario: str, roles: Sequence[str], *, open_locks: bool = True,
                mutant: int = -1) -> Primitives: ...
