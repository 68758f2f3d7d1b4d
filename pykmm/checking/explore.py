# SPDX-License-Identifier: GPL-2.0-only
"""pykmm.explore: every schedule of Python functions that use the kernel's primitives."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Concatenate

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.explore import MAX_VCPUS, PythonProgram
from pykmm_ext.kernel.primitives import Abandoned, Atomic, CpuRef, CpuSet, Plain, Rcu, RwSem, SeqLock, SpinLock, Srcu

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from pykmm_ext.engine.check import Step

    P = ParamSpec("P")

__all__ = ["Abandoned", "ExploreContext", "ExploreReport", "Violation", "explore"]

#: Executions of the explorers "random" and "pct" when no limit is given.
DEFAULT_SAMPLES = 1000


class ExploreContext:
    """What a program under exploration gets: it makes shared objects and starts vCPUs. New in every execution.

    Names are for reports; without one an object is "Atomic #0" and so on, in the order in which they are made.
    """

    def __init__(self, program: PythonProgram) -> None:
        self.cpus: CpuSet = program.cpus    #: for Atomic(x.cpus) and so on
        self._program = program

    def atomic(self, value: int = 0, name: str | None = None) -> Atomic:
        """A word of 64 bits that CPUs share."""
        return Atomic(self.cpus, value, name)

    def plain(self, value: Any = None, name: str | None = None) -> Plain:
        """A plain variable for any object: looked at for data races and use after kfree()."""
        return Plain(self.cpus, value, name)

    def spin_lock(self, name: str | None = None) -> SpinLock:
        """A spinlock."""
        return SpinLock(self.cpus, name)

    def rw_sem(self, name: str | None = None) -> RwSem:
        """A reader-writer semaphore."""
        return RwSem(self.cpus, name)

    def seq_lock(self, name: str | None = None) -> SeqLock:
        """A sequence lock."""
        return SeqLock(self.cpus, name)

    def rcu(self) -> Rcu:
        """The RCU domain."""
        return Rcu(self.cpus)

    def srcu(self, name: str | None = None) -> Srcu:
        """An SRCU domain."""
        return Srcu(self.cpus, name)

    def vcpu(self, function: Callable[Concatenate[CpuRef, P], object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run function(cpu, ...) on the next vCPU. An exception that leaves it is a violation."""
        if not callable(function):
            raise TypeError(f"{function!r} is not callable")
        if len(self._program.functions) >= MAX_VCPUS:
            raise ValueError(f"a program has at most {MAX_VCPUS} vCPUs")
        if args or kwargs:
            self._program.functions.append(lambda cpu: function(cpu, *args, **kwargs))
        else:
            self._program.functions.append(function)

    def choose(self, cpu: CpuRef, n: int) -> int:
        """A number from 0 to n - 1, each of which is tried; n is 1 to 64."""
        return cpu.choose(n)

    def final(self, function: Callable[[], object]) -> None:
        """Call function() when all vCPUs have returned and all stores are visible.

        Its assertions are checks of every execution; what it returns (anything that can be a key) is the outcome of the
        execution, counted in ``report.outcomes``.
        """
        self._program.final = function


@dataclass
class Violation:
    """Something that went wrong, and the way to it."""

    kind: str                       #: deadlock, data-race, assertion, ...
    message: str                    #: of an exception: with the lines that led to it
    schedule: tuple[int, ...]       #: agent | choice << 8, a step each
    execution: int = 0              #: complete executions before the first one that ended with it
    count: int = 1                  #: executions that ended with it
    trace: str = ""                 #: a line per step

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}\n\n{self.trace}"


@dataclass
class ExploreReport:
    """What an exploration found, and how much it has seen. ``assert report.ok, str(report)``."""

    name: str                       #: of the program
    vcpus: int
    memory_model: str
    explorer: str
    finished: bool                  #: the search came to its own end
    complete: bool                  #: ... and no schedule was left out
    executions: int                 #: that came to their end without a violation
    blocked: int                    #: that were cut off because the rest was seen already
    failed: int                     #: that ended with a violation
    steps: int
    seconds: float
    violations: list[Violation] = field(default_factory=list)
    outcomes: dict[Any, int] = field(default_factory=dict)  #: executions by what final() returned
    max_steps: int = 10_000
    _program: PythonProgram | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """No violation was found. Whether everything was looked at: ``complete``."""
        return not self.violations

    @property
    def executions_per_s(self) -> float:
        """Executions of every kind per second."""
        total = self.executions + self.blocked + self.failed
        return total / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        verdict = "exhaustive" if self.complete else "not exhaustive"
        lines = [str(violation) for violation in self.violations]
        lines.append(f"{self.name}: {verdict} under {self.memory_model}, {self.vcpus} vCPUs: "
                     f"{self.executions} executions, {self.failed} with a violation")
        return "\n".join(lines)

    def replay(self, violation: Violation | None = None) -> str:
        """The steps of a violation (the first if None), run again.

        ValueError: there is none, or the program does not do the same again.
        """
        if violation is None:
            if not self.violations:
                raise ValueError("there is no violation to replay")
            violation = self.violations[0]
        if self._program is None:
            raise ValueError("this report has lost its program")
        return _trace(self._program, violation, self.memory_model, self.max_steps)


def explore(
        program: Callable[[ExploreContext], object], *, memory_model: str = "sc", explorer: str = "dpor", seed: int = 0,
        preemptions: int | None = None, max_executions: int = 0, max_seconds: float = 0.0, max_steps: int = 10_000,
        depth: int = 3, stop_at_violation: bool = True, watchdog: float = 10.0) -> ExploreReport:
    """Run a program of Python functions under every schedule that a memory model allows.

    :param program: called with an :class:`ExploreContext` at the beginning of every execution; has to do the same every
        time
    :param memory_model: "sc", "tso" (x86), "pso" or "power"
    :param explorer: "dpor" (all schedules that differ), "dfs" (all), "random" or "pct" (samples)
    :param seed: of random and pct
    :param preemptions: only schedules with at most that many preemptions (explorers dpor and dfs)
    :param max_executions: 0 = no limit; random and pct: 1000 unless max_seconds is given
    :param max_seconds: 0 = no limit
    :param max_steps: an execution of more steps is a livelock
    :param depth: explorer "pct": bug depth
    :param stop_at_violation: end at the first violation
    :param watchdog: seconds after which a function that has not come to a primitive ends everything with RuntimeError;
        0 = never

    ValueError: unknown names or impossible values. RuntimeError: a function blocks outside of pykmm's primitives, or
    the program depends on something but the schedule. What the program itself raises (not its functions) is passed on.
    """
    if max_executions < 0 or not 0 <= max_seconds < float("inf"):
        raise ValueError("limits must not be negative")
    if preemptions is not None and (preemptions < 0 or explorer not in ("dpor", "dfs")):
        raise ValueError("preemptions takes a number that is not negative, and explorer dpor or dfs")
    if explorer in ("random", "pct") and not max_executions and not max_seconds:
        max_executions = DEFAULT_SAMPLES
    build = partial(_build, program)
    probe = PythonProgram(build, MAX_VCPUS)
    count = probe.dry_run()
    probe.close()
    source = PythonProgram(build, count)
    exploration = Exploration(
        source, memory_model=memory_model, explorer="dfs" if preemptions is not None else explorer, seed=seed,
        preemptions=-1 if preemptions is None else preemptions, max_steps=max_steps, depth=depth, watchdog=watchdog)
    start = monotonic()
    try:
        exploration.run(max_executions=max_executions, max_seconds=max_seconds, stop_at_violation=stop_at_violation)
        seconds = monotonic() - start
        found = [Violation(*one) for one in exploration.violations]
        for violation in found:
            violation.trace = _trace(source, violation, memory_model, max_steps)
        return ExploreReport(
            getattr(program, "__qualname__", repr(program)), count, memory_model, explorer, exploration.finished,
            exploration.complete, exploration.executions, exploration.blocked, exploration.failed, exploration.steps,
            seconds, found, {source.outcome(number): n for number, n in exploration.outcomes.items()}, max_steps,
            source)
    finally:
        source.close()


def _build(program: Callable[[ExploreContext], object], source: PythonProgram) -> None:
    program(ExploreContext(source))


def _trace(source: PythonProgram, violation: Violation, memory_model: str, max_steps: int) -> str:
    """Replay the schedule; one line per step."""
    again = Exploration(source, memory_model=memory_model, explorer="replay", max_steps=max_steps)
    source.tracing = True
    try:
        steps = again.replay(violation.schedule)
        lines = [_line(source, again, step) for step in steps]
    finally:
        source.tracing = False
        source.close()
    if again.last is None or again.last[0] != violation.kind:
        ended = "nothing" if again.last is None else again.last[0]
        raise ValueError(f"the schedule ended with {ended} instead of {violation.kind}: the program does not do the "
                         "same under the same schedule")
    return "\n".join(lines)


def _line(source: PythonProgram, exploration: Exploration, step: Step) -> str:
    frames: Sequence[int] = step["frames"]
    where = source.line(frames[0]) if frames else None
    place = f"{where[0]}:{where[1]} in {where[2]}" if where else ""
    change = ""
    if step["object"]:
        change = f"{step['old']:#x}" if step["old"] == step["new"] else f"{step['old']:#x} -> {step['new']:#x}"
    elif step["op"] == "choose":
        change = f"{step['choice']}"
    stale = f" [stale: newest is {step['newest']:#x}]" if step["stale"] else ""
    who = exploration.agent_name(step["agent"])
    text = f"{step['step']:4} {who:13} {step['op']:8} {step['object']:16} {change}{stale}"
    return f"{text:70} {place}".rstrip()
