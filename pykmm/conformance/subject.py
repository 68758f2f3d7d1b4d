# SPDX-License-Identifier: GPL-2.0-only
"""What is tested, on what, and how thoroughly."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pykmm.machine import Machine
from pykmm.plugin import get_plugin_manager

if TYPE_CHECKING:
    from pykmm_ext.arch import Arch
    from pykmm_ext.strategy import Strategy

    StrategyLike = str | Strategy | Callable[[], Strategy]
    ArchLike = str | Arch | Callable[[], Arch]

__all__ = ["EFFORTS", "Effort", "Subject"]


@dataclass(frozen=True)
class Effort:
    """How much of everything."""

    name: str
    tapes: int              #: generated tapes of each kind
    executions: int         #: of each scenario, at most; every schedule if there are no more
    samples: int            #: executions by random priorities where the schedules were not exhausted
    seconds: float          #: for one scenario, at most; 0 = no limit
    rounds: int             #: of the stress
    spaces: int             #: address spaces that come and go
    entries: int            #: random entries per question of an arch
    timeout: float          #: seconds for one check, before it counts as hung
    basics: float           #: seconds for the first accesses, which take milliseconds


EFFORTS = {effort.name: effort for effort in (
    Effort("quick", tapes=4, executions=100, samples=30, seconds=0.0, rounds=400, spaces=6, entries=150, timeout=60.0,
           basics=10.0),
    Effort("normal", tapes=40, executions=10_000, samples=1_000, seconds=1.0, rounds=8_000, spaces=60, entries=2_000,
           timeout=300.0, basics=20.0),
    Effort("full", tapes=600, executions=0, samples=100_000, seconds=60.0, rounds=400_000, spaces=1_000, entries=50_000,
           timeout=7_200.0, basics=60.0),
)}


class Subject:
    """A strategy on an arch. Both by name, as an object, or as a function that makes one.

    ValueError: a name that is not known (the known ones are listed), or an unknown effort.
    """

    def __init__(self, strategy: StrategyLike, arch: ArchLike = "x86", *, effort: str = "normal", seed: int = 0,
                 memory_model: str | None = None) -> None:
        if effort not in EFFORTS:
            raise ValueError(f"unknown effort {effort!r}; known: {', '.join(EFFORTS)}")
        manager = get_plugin_manager()
        self.effort = EFFORTS[effort]
        self.seed = seed
        self.of_arch = False    #: it is the arch that is tested
        self._strategy = strategy
        self._arch = arch
        if isinstance(strategy, str):
            manager.strategies.parse(strategy)
        if isinstance(arch, str):
            manager.arches.parse(arch)
        made = self.make_arch()
        self.strategy = strategy if isinstance(strategy, str) else self._name(self.make_strategy())
        self.arch = arch if isinstance(arch, str) else self._name(made)
        self.memory_model = memory_model or str(made.memory_model)
        geometry: dict[str, Any] = made.geometry()
        self.page = 1 << int(geometry["page_shift"])
        self.table_span = 1 << int(geometry["level_shift"][1])      #: bytes that one table of PTEs maps
        self.task_size = int(geometry["task_size"])

    @staticmethod
    def _name(made: Any) -> str:
        return str(getattr(made, "name", None) or type(made).__name__)

    @property
    def named(self) -> bool:
        """Both are registered names: another process can make them again."""
        return isinstance(self._strategy, str) and isinstance(self._arch, str)

    def make_strategy(self) -> Strategy:
        """A strategy for one more machine."""
        if isinstance(self._strategy, str):
            found: Strategy = get_plugin_manager().strategies.make(self._strategy)
            return found
        return self._strategy() if callable(self._strategy) else self._strategy

    def make_arch(self) -> Arch:
        """An arch for one more machine."""
        if isinstance(self._arch, str):
            found: Arch = get_plugin_manager().arches.make(self._arch)
            return found
        return self._arch() if callable(self._arch) else self._arch

    def machine(self, cpus: int, frames: int = 16384, quirks: tuple[str, ...] = ()) -> Machine:
        """A machine with `frames` frames of memory; a context manager."""
        return Machine(arch=self.make_arch(), strategy=self.make_strategy(), cpus=cpus, memory=frames * self.page,
                       fault_around=min(16 * self.page, self.table_span), quirks=quirks)

    def replay(self, check: str) -> str:
        """How to make one check again."""
        if not self.named:
            name = "check_arch_conformance" if self.of_arch else "check_conformance"
            return f"replay: {name}(..., only=({check!r},), effort={self.effort.name!r}, seed={self.seed})"
        effort = "" if self.effort.name == "normal" else f" --{self.effort.name}"
        if self.of_arch:
            return f"replay: pykmm conformance {self.arch} --only {check} --seed {self.seed}{effort}"
        name = f"'{self.strategy}'" if "[" in self.strategy else self.strategy
        return f"replay: pykmm conformance {name} --arch {self.arch} --only {check} --seed {self.seed}{effort}"
