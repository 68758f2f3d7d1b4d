# SPDX-License-Identifier: GPL-2.0-only
"""The tape executor of the check engine."""
from typing import Any, Self

from typing_extensions import disjoint_base

from pykmm_ext.arch import Arch
from pykmm_ext.engine.check import Program
from pykmm_ext.engine.tape_ops import TapeArrays
from pykmm_ext.strategy import Strategy

@disjoint_base
class TapeCheck(Program):
    def __new__(cls, arrays: TapeArrays, arch: Arch, strategy: Strategy, *, cpus: int, memory: int,
                labels: list[bytes], quirks: int = 0, fault_around: int = 0) -> Self: ...
    @property
    def exhausted(self) -> bool: ...
    def running(self, vcpu: int) -> str: ...
    @property
    def strategy_name(self) -> str: ...
    @property
    def lockdep(self) -> dict[str, Any]: ...
    def describe(self, address: int) -> str: ...
