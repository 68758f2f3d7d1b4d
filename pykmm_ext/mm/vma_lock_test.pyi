# SPDX-License-Identifier: GPL-2.0-only
from typing import Self

from typing_extensions import disjoint_base

from pykmm_ext.binding import MmStruct

def lock_state(mm: MmStruct, address: int) -> tuple[int, int, int, int]: ...

@disjoint_base
class Reader:
    def __new__(cls, mm: MmStruct, address: int, refcount: bool) -> Self: ...
    def waited_for(self) -> bool: ...
    def leave(self) -> None: ...
