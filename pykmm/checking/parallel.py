# SPDX-License-Identifier: GPL-2.0-only
"""A search spread over the workers of an executor.

A systematic search is cut after its first steps into parts that share nothing; how, depends on the program alone, not
on the workers. Parts are merged in their order, and when one has a violation, what came after it does not count. So the
result is the same with any number of workers. Against a search in one piece, complete executions, outcomes and
violations of a search that came to its end are the same; `blocked` and `failed` may differ, since every choice of the
first steps is tried, and a search that stops at its first violation may meet another one first.
"""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from pykmm.checking.search import Found, Part, Settings, chunks, exploration_of, merge, outcomes_of, run_part

if TYPE_CHECKING:
    from pykmm.checking.source import Source
    from pykmm.checking.steps import Prefix
    from pykmm_ext.engine.check import Program

__all__ = ["search_parallel", "split"]

#: Parts that a search is cut into, at least, where it is large enough.
PARTS = 64
MAX_DEPTH = 24
#: Parts that are under way or wait for a worker at a time.
AHEAD = 64

_local = threading.local()


def _program(source: Source) -> Program:
    """The program of this worker: made once, since the same parts come one after the other."""
    made: tuple[object, Program] | None = getattr(_local, "made", None)
    key = (source.name, source.variant, source.digest)
    if made is None or made[0] != key:
        made = _local.made = (key, source.program())
    return made[1]


def _work(source: Source, settings: Settings, prefix: Prefix, seed: int, max_executions: int,
          max_seconds: float) -> Part:
    return run_part(_program(source), settings, prefix=prefix, seed=seed, max_executions=max_executions,
                    max_seconds=max_seconds)


def split(program: Program, settings: Settings, parts: int = PARTS) -> tuple[list[Prefix], Part]:
    """Prefixes of at least `parts` parts, where the search has as many; and what ended before they begin."""
    depth = 2
    while True:
        exploration = exploration_of(
            program, memory_model=settings.memory_model, explorer=settings.explorer,
            preemptions=-1 if settings.preemptions is None else settings.preemptions, max_steps=settings.max_steps)
        prefixes = exploration.split(depth)
        if len(prefixes) >= parts or depth >= MAX_DEPTH or not prefixes:
            break
        depth += 1
    short = Part(True, exploration.bounded, exploration.executions, exploration.blocked, exploration.failed,
                 exploration.steps, outcomes_of(program, exploration),
                 [Found(*found) for found in exploration.violations])
    return prefixes, short


def _jobs(program: Program, settings: Settings) -> tuple[Iterable[tuple[Prefix, int, int]], Part]:
    """(prefix, seed, limit of executions) of each part."""
    if settings.sampling:
        return (((), seed, count) for seed, count in chunks(settings)), Part()
    prefixes, short = split(program, settings)
    return ((prefix, settings.seed, settings.max_executions) for prefix in prefixes), short


def search_parallel(source: Source, settings: Settings, executor: Executor,
                    progress: Callable[[int], None] | None = None) -> Part:
    """As :func:`pykmm.checking.search.search`, on the workers of `executor`.

    With processes the source has to be picklable (tapes are). What a worker raises is raised here.
    """
    start = monotonic()
    jobs, short = _jobs(source.program(), settings)
    parts = [short]
    if settings.stop_at_violation and short.violations:
        first = short.violations[0]
        return replace(short, finished=False, stopped="violation", violations=[replace(first, count=1)],
                       executions=first.execution, failed=1, outcomes={})
    left = iter(jobs)
    waiting: deque[tuple[tuple[Prefix, int, int], Future[Part]]] = deque()
    done = short.total
    stopped = ""

    def seconds() -> float:
        return settings.max_seconds - (monotonic() - start) if settings.max_seconds else 0.0

    def fill(left: Iterator[tuple[Prefix, int, int]]) -> None:
        while len(waiting) < AHEAD and (not settings.max_seconds or seconds() > 0):
            job = next(left, None)
            if job is None:
                return
            waiting.append((job, executor.submit(_work, source, settings, *job, max(seconds(), 0.0))))

    try:
        fill(left)
        while waiting:
            job, future = waiting.popleft()
            part = future.result()
            over = settings.max_executions - done if settings.max_executions and not settings.sampling else part.total
            if part.total > over or (over <= 0 and part.total):
                # The limit lies inside of this part: once more, up to it.
                part = _work(source, settings, *job[:2], over, 0.0) if over > 0 else Part(finished=False)
                part.stopped = part.stopped or "executions"
            if settings.sampling and part.stopped == "executions":
                part.stopped = ""
            parts.append(part)
            done += part.total
            if progress is not None:
                progress(done)
            if part.stopped:
                stopped = part.stopped
                break
            if settings.stop_at_violation and part.violations:
                stopped = "violation"
                break
            fill(left)
    finally:
        for _, future in waiting:
            future.cancel()
    more = next(left, None) is not None or bool(waiting)
    whole = merge(parts)
    if settings.max_seconds and seconds() <= 0 and more and not stopped:
        stopped = "time"
    whole.stopped = stopped or ("executions" if settings.sampling and settings.max_executions else "")
    whole.finished = whole.finished and not whole.stopped and not more and not settings.sampling
    return whole
