# SPDX-License-Identifier: GPL-2.0-only
"""What every call into the core needs, and File."""
from typing import SupportsIndex

from typing_extensions import disjoint_base

from pykmm_ext.arch import Arch
from pykmm_ext.binding import Machine

@disjoint_base
class MachineHandle:
    arch_object: Arch

@disjoint_base
class File:
    machine: Machine
    name: str
    def __init__(self) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def ino(self) -> int: ...
    @property
    def dev(self) -> tuple[int, int]: ...
    def truncate(self, size: SupportsIndex, *, cpu: SupportsIndex = 0) -> None: ...
    def close(self) -> None: ...
