# SPDX-License-Identifier: GPL-2.0-only
"""pykmm.explore: every schedule of Python functions that use the kernel's primitives."""
from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os.path import basename
from typing import TYPE_CHECKING, Any, Concatenate

import pykmm
from pykmm.checking.checker import check_source
from pykmm.checking.report import CheckReport, Violation
from pykmm.checking.schedule import Token, TokenError, decode
from pykmm.checking.search import Settings, replay
from pykmm.checking.source import Source
from pykmm_ext.engine.explore import MAX_VCPUS, PythonProgram
from pykmm_ext.kernel.primitives import Abandoned, Atomic, CpuRef, CpuSet, Plain, Rcu, RwSem, SeqLock, SpinLock, Srcu

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from pykmm.checking.trace import Trace

    P = ParamSpec("P")

__all__ = ["Abandoned", "ExploreContext", "ExploreProgram", "PythonLine", "Violation", "explore", "replay_token"]

#: Executions of the explorers "random" and "pct" when no limit is given.
DEFAULT_SAMPLES = 1000
#: Executions that simplifying one schedule may take; a step costs microseconds here.
BUDGET = 2000
#: What marks the tokens of this module.
KIND = {"explore": "python"}


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


@dataclass(frozen=True)
class PythonLine:
    """Where a vCPU's function called a primitive: the "function" of a row of a trace."""

    path: str
    line: int
    name: str                       #: of the function
    primitive = False

    def __str__(self) -> str:
        return f"{basename(self.path)}:{self.line} {self.name}"


class ExploreProgram(PythonProgram):
    """A function that takes an :class:`ExploreContext`, as something that the engine runs.

    `watchdog`: seconds after which a vCPU that has not come to a primitive ends the search.
    """

    watchdog: float = 10.0

    @classmethod
    def make(cls, program: Callable[[ExploreContext], object], nr_vcpus: int, watchdog: float) -> ExploreProgram:
        """What the constructor makes, with a watchdog."""
        self = cls(partial(_build, program), nr_vcpus)
        self.watchdog = watchdog
        return self

    @contextmanager
    def traced(self) -> Iterator[Callable[[Sequence[int]], list[PythonLine]]]:
        """Steps of executions inside of the block keep their lines; gives what turns "frames" into lines."""
        self.tracing = True
        try:
            yield lambda frames: [PythonLine(*place) for place in map(self.line, frames) if place is not None]
        finally:
            self.tracing = False
            self.close()


@dataclass(frozen=True)
class _Make:
    """Makes the program, here or in another process."""

    program: Callable[[ExploreContext], object]
    nr_vcpus: int
    watchdog: float

    def __call__(self) -> ExploreProgram:
        return ExploreProgram.make(self.program, self.nr_vcpus, self.watchdog)


def explore(
        program: Callable[[ExploreContext], object], *, memory_model: str = "sc", explorer: str = "dpor", seed: int = 0,
        preemptions: int | None = None, max_executions: int | None = None, max_seconds: float | None = None,
        max_steps: int = 10_000, depth: int = 3, executor: Executor | None = None, stop_at_violation: bool = True,
        minimised: bool = True, watchdog: float = 10.0, progress: Callable[[str], None] | None = None) -> CheckReport:
    """Run a program of Python functions under every schedule that a memory model allows.

    :param program: called with an :class:`ExploreContext` at the beginning of every execution; has to do the same every
        time
    :param memory_model: "sc", "tso" (x86), "pso" or "power"
    :param explorer: "dpor" (all schedules that differ), "dfs" (all), "random" or "pct" (samples)
    :param seed: of random and pct
    :param preemptions: only schedules with at most that many preemptions (explorers dpor and dfs)
    :param max_executions: 0 or None = no limit; random and pct: 1000 unless max_seconds is given
    :param max_seconds: 0 or None = no limit
    :param max_steps: an execution of more steps is a livelock
    :param depth: explorer "pct": bug depth
    :param executor: a ``concurrent.futures`` executor that the search is spread over. Other processes import the
        program: it has to be a function at the top level of a module, not a closure or a lambda
    :param stop_at_violation: end at the first violation
    :param minimised: simplify the schedule of each violation (at most 2000 executions more)
    :param watchdog: seconds after which a function that has not come to a primitive ends everything with RuntimeError;
        0 = never
    :param progress: called now and then with a line that says how far it is

    ``report.outcomes`` counts executions by what ``x.final()``'s function returned. ValueError: unknown names,
    impossible values, or a program that cannot be sent to the executor's processes. RuntimeError: a function blocks
    outside of pykmm's primitives, or the program depends on something but the schedule. What the program itself raises
    (not its functions) is passed on.
    """
    if explorer in ("random", "pct") and not max_executions and not max_seconds:
        max_executions = DEFAULT_SAMPLES
    settings = Settings(memory_model, explorer, seed, preemptions, max_executions or 0, max_seconds or 0.0,
                        stop_at_violation, max_steps, depth)
    source = _source(program, watchdog)
    if executor is not None and not isinstance(executor, ThreadPoolExecutor):
        try:
            pickle.dumps(source)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"{source.name} cannot be sent to other processes ({error}): define it at the top level "
                             "of a module, or explore without executor") from None
    return check_source(source, settings, executor=executor, budget=BUDGET if minimised else 0, progress=progress)


def replay_token(token: str | Token, program: Callable[[ExploreContext], object], *, watchdog: float = 10.0) -> Trace:
    """Run the execution of `program` that a violation's token leads to; ``trace.kind`` says what it ended with.

    TokenError (a ValueError): the token is damaged, or was made from something else: another function, another text of
    the same function. ValueError: the schedule cannot be followed.
    """
    if isinstance(token, str):
        token = decode(token)
    if dict(token.options).get("explore") != "python":
        raise TokenError("not a replay token of pykmm.explore(): use pykmm.checking.checker.replay_token()")
    source = _source(program, watchdog)
    source.check_token(token)
    return replay(source, token.schedule, token.memory_model, max_steps=token.max_steps)


def _build(program: Callable[[ExploreContext], object], source: PythonProgram) -> None:
    program(ExploreContext(source))


def _source(program: Callable[[ExploreContext], object], watchdog: float) -> Source:
    probe = ExploreProgram(partial(_build, program), MAX_VCPUS)
    try:
        count = probe.dry_run()
    finally:
        probe.close()
    make = _Make(program, count, watchdog)
    make().close()      # ValueError: too few vCPUs
    name = str(getattr(program, "__qualname__", type(program).__qualname__))
    return Source(name, "", "", _digest(program, count), make, "sc", options=KIND)


def _digest(program: object, count: int) -> str:
    """Over the text of a function and the numbers and strings that it is closed over."""
    parts = [pykmm.__version__, str(count)]
    left, known = [program], set()
    while left:
        what = left.pop()
        if id(what) in known:
            continue
        known.add(id(what))
        if isinstance(what, partial):
            left += [what.func, *what.args, *what.keywords.items()]
        elif isinstance(what, (bool, int, float, str, bytes, type(None))):
            parts.append(repr(what))
        elif isinstance(what, (tuple, list)):
            left += what
        elif inspect.isfunction(what):
            parts += [what.__module__, what.__qualname__, _text(what)]
            left += [*(what.__defaults__ or ()), *(what.__kwdefaults__ or {}).items()]
            for cell in what.__closure__ or ():
                try:
                    left.append(cell.cell_contents)
                except ValueError:
                    continue        # not bound yet
        else:
            parts.append(f"{type(what).__module__}.{type(what).__qualname__}")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _text(function: Callable[..., object]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return function.__code__.co_code.hex()
