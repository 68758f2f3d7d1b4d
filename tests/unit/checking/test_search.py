# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/search.py and parallel.py: limits, sampling, and the same result with any number of workers."""
from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
from litmus_programs import enter_both, increments5, increments6, late_bug, lock_order, stale_read, two_bugs

from pykmm.checking.parallel import search_parallel, split
from pykmm.checking.search import Part, Settings, chunks, merge, run_part, search
from pykmm.checking.source import find
from pykmm_ext.engine.check import Program

Make = Callable[[], Program]


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def result(part: Part) -> tuple[object, ...]:
    """What has to be the same."""
    return (part.finished, part.bounded, part.executions, bool(part.failed), part.outcomes,
            sorted((v.kind, v.message) for v in part.violations))


def test_counts() -> None:
    part = search(increments5(), Settings("sc"))
    assert (part.finished, part.executions, part.blocked, part.failed) == (True, 120, 0, 0)
    assert sum(part.outcomes.values()) == 120


def test_limits() -> None:
    seen: list[int] = []
    part = search(increments6(), Settings("sc", max_executions=100), seen.append)
    assert (part.executions, part.finished, part.stopped) == (100, False, "executions")
    assert seen[0] == 0
    assert search(increments6(), Settings("sc", max_executions=720)).executions == 720
    part = search(increments6(), Settings("sc", "random", max_seconds=0.05))
    assert (part.finished, part.stopped) == (False, "time")
    assert part.executions


@pytest.mark.parametrize("explorer", ["random", "pct"])
def test_samples_are_the_same_again(explorer: str) -> None:
    settings = Settings("tso", explorer, seed=7, max_executions=5000, stop_at_violation=False)
    one, two = search(enter_both(), settings), search(enter_both(), settings)
    assert one == two
    assert one.total == 5000
    assert (one.finished, one.stopped) == (False, "executions")
    assert one.executions
    assert one.failed, "the weak outcome is common"
    assert search(enter_both(), replace(settings, seed=8)) != one


def test_unlimited_sampling_ends() -> None:
    assert sum(count for _, count in chunks(Settings("sc", "random"))) == 10_000
    assert search(increments5(), Settings("sc", "random")).total == 10_000


@pytest.mark.parametrize("make", [increments6, enter_both, lock_order, two_bugs, stale_read, late_bug])
@pytest.mark.parametrize("settings", [Settings("sc"), Settings("tso"), Settings("power"), Settings("sc", "dfs"),
                                      Settings("sc", preemptions=1)], ids=str)
def test_parts_make_the_whole(make: Make, settings: Settings, processes: Executor) -> None:
    """The whole search, without stopping: as one piece, in threads, in processes. Parts of a search under power do not
    know what the others find out of barriers that sleep, and may see an execution again."""
    settings = replace(settings, stop_at_violation=False)
    whole = search(make(), settings)
    with ThreadPoolExecutor(1) as one:
        parts = search_parallel(find(make), settings, one)
    if settings.preemptions is None and settings.memory_model != "power":
        assert result(parts) == result(whole)
    else:
        assert (parts.finished, set(parts.outcomes)) == (whole.finished, set(whole.outcomes))
        assert {(v.kind, v.message) for v in parts.violations} == {(v.kind, v.message) for v in whole.violations}
    assert search_parallel(find(make), settings, processes) == parts


def test_stopping_does_not_depend_on_the_workers(processes: Executor) -> None:
    for make in (lock_order, two_bugs, late_bug):
        with ThreadPoolExecutor(1) as one:
            first = search_parallel(find(make), Settings("sc"), one)
        assert first == search_parallel(find(make), Settings("sc"), processes)
        assert first.stopped == "violation"
        assert len(first.violations) == 1
        assert not first.finished


@pytest.mark.parametrize("limit", [1, 50, 100, 333, 719, 720])
def test_limits_of_parts(limit: int, processes: Executor) -> None:
    part = search_parallel(find(increments6), Settings("sc", max_executions=limit), processes)
    assert part.executions == limit
    assert part.stopped == ("" if limit == 720 else "executions")
    assert part.finished == (limit == 720)


def test_random_parts_are_those_of_one(processes: Executor) -> None:
    settings = Settings("tso", "random", seed=3, max_executions=5000, stop_at_violation=False)
    assert search_parallel(find(enter_both), settings, processes) == search(enter_both(), settings)


def test_what_a_worker_raises_comes_here(processes: Executor) -> None:
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        search_parallel(find(increments6()), Settings("sc"), processes)


def test_split_is_deterministic() -> None:
    prefixes, short = split(increments6(), Settings("sc"))
    assert len(prefixes) >= 64
    assert (prefixes, short) == split(increments6(), Settings("sc"))
    parts = [run_part(increments6(), Settings("sc"), prefix=prefix) for prefix in prefixes]
    assert merge([short, *parts]).executions == 720


@pytest.mark.parametrize(("changes", "message"), [
    ({"explorer": "dpor2"}, "unknown explorer 'dpor2'; known: dpor, dfs, random, pct"),
    ({"explorer": "replay"}, "unknown explorer"),
    ({"memory_model": "arm"}, "unknown memory model 'arm'; known: sc, tso, pso, power"),
    ({"preemptions": -1}, "must not be negative"),
    ({"preemptions": 2, "explorer": "pct"}, "takes explorer dpor or dfs"),
    ({"max_seconds": -1}, "must not be negative"),
])
def test_impossible_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes)  # type: ignore[arg-type]


def test_chunks_of_random_are_one_search() -> None:
    """Chunks begin where the one before ended: together they are what one exploration does."""
    settings = Settings("tso", "random", seed=3, max_executions=5000, stop_at_violation=False)
    one = run_part(enter_both(), settings)
    assert search(enter_both(), settings).outcomes == one.outcomes
