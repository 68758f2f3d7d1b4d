# SPDX-License-Identifier: GPL-2.0-only
"""Driving an exploration: limits, progress, sampling in chunks, and one schedule again."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykmm.checking.source import Source
    from pykmm.checking.steps import Prefix
    from pykmm.checking.trace import Trace
    from pykmm_ext.engine.check import Exploration, Program

__all__ = ["Found", "Part", "Settings", "chunks", "exploration_of", "follow", "merge", "outcomes_of", "replay",
           "run_part", "search"]

#: Executions of a random search without any limit.
DEFAULT_SAMPLES = 10_000
#: Executions of one exploration of a random search: what it remembers (pct: the longest one) does not outlive them.
CHUNK = 2_000
#: Seconds between two calls of `progress`.
SLICE = 0.25
#: What the engine adds to the seed from one random execution to the next.
_STRIDE = 0x9E3779B97F4A7C15
_U64 = (1 << 64) - 1


@dataclass(frozen=True)
class Settings:
    """How to search. Zero is no limit."""

    memory_model: str = "tso"
    explorer: str = "dpor"
    seed: int = 0
    preemptions: int | None = None      #: explorers "dpor" and "dfs"
    max_executions: int = 0             #: of every kind: complete, blocked, with a violation
    max_seconds: float = 0.0
    stop_at_violation: bool = True
    max_steps: int = 100_000
    depth: int = 3                      #: explorer "pct"

    def __post_init__(self) -> None:
        from pykmm_ext.engine.check import EXPLORERS, MODELS

        known = [name for name in EXPLORERS if name != "replay"]
        if self.explorer not in known:
            raise ValueError(f"unknown explorer {self.explorer!r}; known: {', '.join(known)}")
        if self.memory_model not in MODELS:
            raise ValueError(f"unknown memory model {self.memory_model!r}; known: {', '.join(MODELS)}")
        if self.preemptions is not None and self.preemptions < 0:
            raise ValueError(f"preemptions must not be negative, not {self.preemptions}")
        if self.preemptions is not None and self.sampling:
            raise ValueError("a bound of preemptions takes explorer dpor or dfs")
        if self.max_executions < 0 or not 0 <= self.max_seconds < float("inf"):
            raise ValueError("limits must not be negative")

    @property
    def sampling(self) -> bool:
        """The explorer never comes to an end by itself."""
        return self.explorer in ("random", "pct")


@dataclass(frozen=True)
class Found:
    """A violation as the engine reports it."""

    kind: str
    message: str
    schedule: tuple[int, ...]
    execution: int
    count: int


@dataclass
class Part:
    """What a part of a search, or all of it, gave. Can be sent between processes."""

    finished: bool = True
    bounded: bool = False
    executions: int = 0
    blocked: int = 0
    failed: int = 0
    steps: int = 0
    outcomes: dict[Any, int] = field(default_factory=dict)
    violations: list[Found] = field(default_factory=list)
    stopped: str = ""       #: "violation", "executions", "time"

    @property
    def total(self) -> int:
        """Executions of every kind."""
        return self.executions + self.blocked + self.failed


def merge(parts: Sequence[Part]) -> Part:
    """Parts of one search, in their order."""
    whole = Part()
    for part in parts:
        for one in part.violations:
            same = next((i for i, other in enumerate(whole.violations)
                         if (other.kind, other.message) == (one.kind, one.message)), None)
            if same is None:
                whole.violations.append(replace(one, execution=one.execution + whole.executions))
            else:
                old = whole.violations[same]
                whole.violations[same] = replace(old, count=old.count + one.count)
        for value, count in part.outcomes.items():
            whole.outcomes[value] = whole.outcomes.get(value, 0) + count
        whole.executions += part.executions
        whole.blocked += part.blocked
        whole.failed += part.failed
        whole.steps += part.steps
        whole.finished &= part.finished
        whole.bounded |= part.bounded
        whole.stopped = whole.stopped or part.stopped
    return whole


def exploration_of(program: Program, **options: Any) -> Exploration:
    """An exploration of `program`, with the watchdog that it asks for (programs of Python functions)."""
    from pykmm_ext.engine.check import Exploration

    if hasattr(program, "watchdog"):
        options["watchdog"] = program.watchdog
    return Exploration(program, **options)


def outcomes_of(program: Program, exploration: Exploration) -> dict[Any, int]:
    """Executions by outcome. The engine knows numbers; a program of Python functions knows what they stand for."""
    if not hasattr(program, "outcome"):
        return dict(exploration.outcomes)
    return {program.outcome(number): count for number, count in exploration.outcomes.items()}


def _named(violations: Sequence[tuple[str, str, tuple[int, ...], int, int]]) -> list[Found]:
    """What the engine found, with names for addresses of code, and what is the same then once."""
    from pykmm.checking.symbols import with_names

    found: dict[tuple[str, str], Found] = {}
    for kind, message, schedule, execution, count in violations:
        one = Found(kind, with_names(message), schedule, execution, count)
        old = found.get((kind, one.message))
        found[kind, one.message] = one if old is None else replace(old, count=old.count + count)
    return list(found.values())


def run_part(program: Program, settings: Settings, *, prefix: Prefix = (), seed: int | None = None,
             max_executions: int | None = None, max_seconds: float | None = None,
             progress: Callable[[int], None] | None = None) -> Part:
    """One exploration, with these limits instead of the settings' (0 = none). `progress` gets executions so far."""
    limit = settings.max_executions if max_executions is None else max_executions
    seconds = settings.max_seconds if max_seconds is None else max_seconds
    exploration = exploration_of(
        program, memory_model=settings.memory_model, explorer=settings.explorer,
        seed=settings.seed if seed is None else seed,
        preemptions=-1 if settings.preemptions is None else settings.preemptions, max_steps=settings.max_steps,
        depth=settings.depth, prefix=prefix)
    start = monotonic()
    stopped = ""
    while not exploration.finished:
        done = exploration.executions + exploration.blocked + exploration.failed
        used = monotonic() - start
        if progress is not None:
            progress(done)
        if limit and done >= limit:
            stopped = "executions"
            break
        if seconds and used >= seconds:
            stopped = "time"
            break
        exploration.run(max_executions=limit - done if limit else 0,
                        max_seconds=min(SLICE, seconds - used) if seconds else SLICE,
                        stop_at_violation=settings.stop_at_violation)
        if settings.stop_at_violation and exploration.failed:
            stopped = "" if exploration.finished else "violation"
            break
    if getattr(program, "exhausted", False):    # the engine says so when it begins another; this was the last one
        raise MemoryError
    return Part(
        exploration.finished and not stopped, exploration.bounded, exploration.executions, exploration.blocked,
        exploration.failed, exploration.steps, outcomes_of(program, exploration),
        _named(exploration.violations), stopped)


def chunks(settings: Settings) -> Iterator[tuple[int, int]]:
    """The explorations that make up a random search: (seed, executions) each. Endless where only time limits it."""
    limit = settings.max_executions
    if not limit and not settings.max_seconds:
        limit = DEFAULT_SAMPLES
    done = 0
    while not limit or done < limit:
        count = min(CHUNK, limit - done) if limit else CHUNK
        yield (settings.seed + done * _STRIDE) & _U64, count
        done += count


def search(program: Program, settings: Settings, progress: Callable[[int], None] | None = None) -> Part:
    """The whole search in this thread."""
    if not settings.sampling:
        return run_part(program, settings, progress=progress)
    start = monotonic()
    parts: list[Part] = []
    done = 0
    for seed, count in chunks(settings):
        left = settings.max_seconds - (monotonic() - start) if settings.max_seconds else 0.0
        if settings.max_seconds and left <= 0:
            parts.append(Part(finished=False, stopped="time"))
            break
        part = run_part(program, settings, seed=seed, max_executions=count, max_seconds=left,
                        progress=None if progress is None else lambda n, done=done: progress(done + n))  # type: ignore[misc]
        if part.stopped == "executions":
            part.stopped = ""       # of the chunk, not of the search
        parts.append(part)
        done += part.total
        if part.stopped:
            break
    whole = merge(parts)
    whole.finished = False
    whole.stopped = whole.stopped or ("executions" if settings.max_executions else "")
    return whole


def follow(program: Program, schedule: Sequence[int], memory_model: str,
           max_steps: int = 100_000) -> tuple[str, tuple[int, ...], int, bool]:
    """Runs one schedule, as far as it can be followed, then as it comes.

    Returns the kind of violation ("" = none), the schedule it took, its preemptions, whether it was the given one.
    """
    exploration = exploration_of(program, memory_model=memory_model, explorer="replay", schedule=schedule,
                                 max_steps=max_steps)
    exploration.run()
    last = exploration.last
    taken = exploration.schedule
    return last[0] if last else "", taken, exploration.preemptions, not exploration.diverged


def replay(source: Source, schedule: Sequence[int], memory_model: str, *, program: Program | None = None,
           max_steps: int = 100_000) -> Trace:
    """The steps of one schedule; ``trace.kind`` says what it ended with. ValueError where it cannot be followed."""
    from pykmm.checking.symbols import callers, with_names
    from pykmm.checking.trace import make_trace

    program = source.program() if program is None else program
    exploration = exploration_of(program, memory_model=memory_model, explorer="replay", max_steps=max_steps)
    names = program.traced() if hasattr(program, "traced") else nullcontext(callers)
    with names as functions:
        steps = exploration.replay(schedule)
        if exploration.diverged or len(schedule) > len(steps):
            raise ValueError(f"the schedule cannot be followed: {source.name!r} does something else now")
        kind, message = exploration.last or ("", "")
        return make_trace(steps, program.nr_vcpus, kind=kind, message=with_names(message), at_end=exploration.at_end,
                          functions=functions)
