# SPDX-License-Identifier: GPL-2.0-only
from collections.abc import Callable
from typing import Any, Final, Self

from typing_extensions import disjoint_base

from pykmm_ext.engine.check import Program
from pykmm_ext.kernel.cpuset import CpuRef, CpuSet

MAX_VCPUS: Final[int]

@disjoint_base
class PythonProgram(Program):
    cpus: Final[CpuSet]
    functions: list[Callable[[CpuRef], object]]
    final: Callable[[], object] | None
    tracing: bool
    def __new__(cls, build: Callable[[PythonProgram], object], nr_vcpus: int) -> Self: ...
    def dry_run(self) -> int: ...
    def close(self) -> None: ...
    def outcome(self, number: int) -> Any: ...
    def line(self, number: int) -> tuple[str, int, str] | None: ...
