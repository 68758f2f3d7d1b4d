# SPDX-License-Identifier: GPL-2.0-only
"""mm/memory.c's self-test: a writer in the middle of a fault, a zapper in the middle of another one's zap."""
from typing import Self

from pykmm_ext.arch import Arch
from pykmm_ext.binding import MmStruct
from pykmm_ext.strategy import Strategy

NAMES: dict[str, int]

class Interposed(Strategy):
    def __new__(cls, real: Strategy) -> Self: ...

class InterposedArch(Arch):
    def __new__(cls, real: Arch) -> Self: ...

def fault_while(
    mm: MmStruct, address: int, write: bool, change: str, start: int = 0, size: int = 0,
) -> dict[str, int]: ...
def zap_while_zapping(mm: MmStruct, address: int, size: int) -> tuple[bool, bool]: ...
