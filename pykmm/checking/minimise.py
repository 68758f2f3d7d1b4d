# SPDX-License-Identifier: GPL-2.0-only
"""From a schedule that fails to the simplest one that fails in the same way.

What counts as simple: few preemptions, then few changes of whoever runs (store buffers and interrupt handlers too),
then few steps. The budget is executions, not time, so that the result is the same on every machine.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from pykmm.checking.schedule import switches
from pykmm.checking.search import exploration_of, follow

if TYPE_CHECKING:
    from pykmm_ext.engine.check import Program

__all__ = ["BUDGET", "Minimal", "minimise"]

#: Executions that minimising may take in all, by default.
BUDGET = 50_000
#: Bounds of preemptions beyond this are not searched.
MAX_BOUND = 3

Cost = tuple[int, int, int]


@dataclass(frozen=True)
class Minimal:
    """The simplest schedule that was found; it fails with the kind that was asked for."""

    schedule: tuple[int, ...]
    preemptions: int
    how: str            #: a word or two for the report


class _Shortener:
    def __init__(self, program: Program, kind: str, memory_model: str, max_steps: int, budget: int) -> None:
        self.program = program
        self.kind = kind
        self.memory_model = memory_model
        self.max_steps = max_steps
        self.left = budget

    def attempt(self, schedule: Sequence[int]) -> tuple[Cost, tuple[int, ...]] | None:
        """Cost and schedule of the execution that `schedule` leads to, if it fails in the right way."""
        self.left -= 1
        kind, taken, preemptions, _ = follow(self.program, schedule, self.memory_model, self.max_steps)
        if kind != self.kind:
            return None
        return (preemptions, switches(taken), len(taken)), taken

    def shorten(self, cost: Cost, schedule: tuple[int, ...]) -> tuple[Cost, tuple[int, ...]]:
        """Moves and leaves out runs of steps while that makes it simpler."""
        better = True
        while better and self.left > 0:
            better = False
            for candidate in _candidates(schedule):
                if self.left <= 0:
                    break
                found = self.attempt(candidate)
                if found is not None and found[0] < cost:
                    cost, schedule = found
                    better = True
                    break
        return cost, schedule

    def bounded(self, bound: int) -> tuple[tuple[int, ...] | None, bool]:
        """A failing schedule of at most `bound` preemptions, and whether all of them were looked at."""
        exploration = exploration_of(self.program, memory_model=self.memory_model, explorer="dpor", preemptions=bound,
                                     max_steps=self.max_steps)
        budget = self.left // 2
        while not exploration.finished:
            done = exploration.executions + exploration.failed + exploration.blocked
            if done >= budget:
                break
            exploration.run(max_executions=budget - done, stop_at_violation=True)
            for kind, _, schedule, _, _ in exploration.violations:
                if kind == self.kind:
                    self.left -= exploration.executions + exploration.failed + exploration.blocked
                    return schedule, True
        self.left -= exploration.executions + exploration.failed + exploration.blocked
        return None, exploration.finished


def _candidates(schedule: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The schedule with one run moved to its agent's run before or after, or left out; large changes first."""
    runs = [list(steps) for _, steps in groupby(schedule, lambda step: step & 0xff)]

    def joined(parts: list[list[int]]) -> tuple[int, ...]:
        return tuple(step for part in parts for step in part)

    for i in range(len(runs)):
        agent = runs[i][0] & 0xff
        after = next((k for k in range(i + 1, len(runs)) if runs[k][0] & 0xff == agent), None)
        if after is not None:
            yield joined([*runs[:i], *runs[i + 1:after], runs[i], *runs[after:]])     # later
            yield joined([*runs[:i + 1], runs[after], *runs[i + 1:after], *runs[after + 1:]])   # the other earlier
        yield joined([*runs[:i], *runs[i + 1:]])
    for i in range(len(runs)):
        if len(runs[i]) > 1:
            yield joined([*runs[:i], runs[i][:len(runs[i]) // 2], *runs[i + 1:]])
            yield joined([*runs[:i], runs[i][:-1], *runs[i + 1:]])


def minimise(program: Program, kind: str, schedule: tuple[int, ...], memory_model: str, *, max_steps: int = 100_000,
             budget: int = BUDGET, progress: Callable[[str], None] | None = None) -> Minimal:
    """The simplest schedule that ends with `kind`, as far as `budget` executions reach.

    First steps of the given schedule are moved and left out; then all schedules of 0, 1, 2 ... preemptions are
    searched, as long as there are fewer of them than in the best one. ValueError where `schedule` itself does
    not end with `kind`.
    """
    shortener = _Shortener(program, kind, memory_model, max_steps, budget)
    first = shortener.attempt(schedule)
    if first is None:
        raise ValueError(f"the schedule does not end with {kind}: the program does not do the same again")
    if budget <= 1:
        return Minimal(first[1], first[0][0], "")
    if progress is not None:
        progress("minimising")
    full = shortener.left
    shortener.left = full // 4      # a quarter at most, so that something is left for the bounds
    cost, best = shortener.shorten(*first)
    shortener.left += full - full // 4
    proven = True
    for bound in range(min(cost[0], MAX_BOUND + 1)):
        if progress is not None:
            progress(f"minimising: {bound} preemption{'' if bound == 1 else 's'}")
        found, whole = shortener.bounded(bound)
        proven = proven and whole
        if found is not None:
            again = shortener.attempt(found)
            if again is not None:
                cost, best = shortener.shorten(*again)
                break
    fewest = proven and cost[0] <= MAX_BOUND + 1
    how = "the fewest possible" if fewest else "shortened" if cost < first[0] else ""
    return Minimal(best, cost[0], how)
