# SPDX-License-Identifier: GPL-2.0-only
"""What a plugin's C tables hold."""
from typing import TypedDict, type_check_only

from pykmm_ext.arch import Arch
from pykmm_ext.strategy import Strategy

@type_check_only
class _Table(TypedDict):
    size: int
    known_size: int
    name: str | None
    members: dict[str, bool]

def strategy_table(strategy: Strategy) -> _Table | None: ...
def arch_table(arch: Arch) -> _Table | None: ...
