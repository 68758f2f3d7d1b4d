# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/minimise.py: simpler schedules that fail in the same way."""
from __future__ import annotations

import pytest
from litmus_programs import enter_both, increments5, late_bug, lock_order, stale_read, two_bugs

from pykmm.checking.minimise import minimise
from pykmm.checking.schedule import switches
from pykmm.checking.search import follow
from pykmm_ext.engine.check import Exploration, Program


def worst(program: Program, memory_model: str, kind: str) -> tuple[tuple[int, ...], int]:
    """Of many random failing schedules the one with the most preemptions and changes."""
    found: list[tuple[int, int, tuple[int, ...]]] = []
    for seed in range(300):
        exploration = Exploration(program, memory_model=memory_model, explorer="random", seed=seed)
        exploration.run(max_executions=20)
        for what, _, schedule, _, _ in exploration.violations:
            if what == kind:
                _, taken, preemptions, _ = follow(program, schedule, memory_model)
                found.append((preemptions, switches(taken), taken))
    preemptions, _, schedule = max(found)
    return schedule, preemptions


@pytest.mark.parametrize(("make", "model", "kind", "fewest"), [
    (lock_order, "sc", "deadlock", 1), (late_bug, "sc", "assertion", 2), (enter_both, "tso", "assertion", 0),
    (stale_read, "power", "assertion", 0), (two_bugs, "sc", "deadlock", 1), (two_bugs, "sc", "assertion", 0),
])
def test_the_fewest_preemptions(make: object, model: str, kind: str, fewest: int) -> None:
    program: Program = make()  # type: ignore[operator]
    schedule, preemptions = worst(program, model, kind)
    minimal = minimise(program, kind, schedule, model)
    assert minimal.preemptions == fewest <= preemptions
    assert minimal.how == "the fewest possible"
    assert switches(minimal.schedule) <= switches(schedule)
    again = follow(program, minimal.schedule, model)
    assert again == (kind, minimal.schedule, fewest, True)
    assert minimise(program, kind, schedule, model) == minimal, "the same again"


def test_without_a_budget_it_stays() -> None:
    schedule, preemptions = worst(late_bug(), "sc", "assertion")
    minimal = minimise(late_bug(), "assertion", schedule, "sc", budget=1)
    assert (minimal.schedule, minimal.preemptions, minimal.how) == (schedule, preemptions, "")


def test_a_schedule_that_does_not_fail() -> None:
    with pytest.raises(ValueError, match="does not end with deadlock"):
        minimise(increments5(), "deadlock", (0, 1, 2), "sc")
