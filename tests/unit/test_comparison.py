# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/comparison.py and comparison_report.py: pairing, tables and JSON."""
from __future__ import annotations

import errno
import json
import os
import statistics
from typing import Any

import pytest
from comparison_rows import row

import pykmm
from pykmm import comparison as module
from pykmm.comparison import Comparison, Spread, _pair
from pykmm.comparison_report import comparison_tables, footnotes, format_rate, summary_tables
from pykmm.suites import SUITES
from pykmm.workload import finish as module_finish
from pykmm.workload import make

SMALL = "page_fault1[size=64K]"


def text(comparison: Comparison) -> str:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=200)
    for table in [*comparison_tables(comparison), *summary_tables(comparison)]:
        console.print(table)
    return out.getvalue()


# -- figures ---------------------------------------------------------------------------------------------

def test_spread() -> None:
    assert Spread.of([3.0]) == (3, 3, 3)
    assert Spread.of([1.0, 2, 3, 4, 5]) == (3, 2, 4)
    assert Spread.of([1.0, 2, 3, 4, 5]).percent == pytest.approx(100 / 3)
    assert Spread.of([0.0, 0]).percent == 0


def test_ratios_are_paired_run_by_run() -> None:
    """The machine was four times as slow in the second run; the ratio does not see it, that of the medians would."""
    rows = [row("a", 1, [1, 4, 1]), row("b", 1, [2, 8, 3]), row("b", 2, [1, 1, 1])]
    _pair(rows, "a")
    assert rows[1].ratios == [2, 2, 3]
    assert rows[1].ratio == 2
    assert rows[0].ratio == 1
    assert rows[2].ratio == 1           # no baseline with two CPUs: the first row there
    assert not rows[0].scaling


def test_scaling_refers_to_the_baseline_on_the_fewest_cpus() -> None:
    rows = [row("b", 2, [1, 2], 20), row("a", 1, [1, 2], 10), row("b", 1, [2, 4], 10), row("a", 2, [2, 2], 20)]
    _pair(rows, "a")
    assert rows[1].scaling == [1, 1]
    assert rows[2].scaling == [0.5, 0.5]
    assert rows[3].scaling == [1, 2]
    assert rows[0].scaling == [2, 2]
    assert (rows[0].ratio, rows[2].ratio) == (0.75, 2)


def test_runs_are_interleaved_after_the_warm_up() -> None:
    said: list[str] = []
    comparison = pykmm.compare([SMALL, "mmap1[iterations=5]"], ["mmap_sem", "spf"], cpus=[1, 2], repeats=2,
                               progress=said.append)
    turn = [f"{strategy} on native, {cpus} CPUs: " for cpus in (1, 2) for strategy in ("mmap_sem", "spf")]
    one = [head + tail for tail in ("warm-up", "run 1 of 2", "run 2 of 2") for head in turn]
    assert said == one * 2
    assert [(r.workload, r.cpus, r.strategy) for r in comparison.rows] == [
        (workload, cpus, strategy) for workload in (SMALL, "mmap1[iterations=5]") for cpus in (1, 2)
        for strategy in ("mmap_sem", "spf")]
    for r in comparison.rows:
        assert len(r.times) == len(r.rates) == len(r.ratios) == len(r.scaling) == 2
        work = r.result.tape.work
        assert r.rates == [pytest.approx(work.total / time) for time in r.times]
        assert work.total == r.cpus * (16 if "page" in r.workload else 5)
        assert r.faults == (r.cpus * 16 if "page" in r.workload else 0)
    assert comparison.baseline == "mmap_sem"
    assert comparison.workloads == [SMALL, "mmap1[iterations=5]"]


def test_warmup_can_be_left_out() -> None:
    said: list[str] = []
    pykmm.compare(SMALL, ["spf"], warmup=0, progress=said.append)
    assert said == ["spf on native, 1 CPUs: run 1 of 1"]


def test_engines_arches_and_json() -> None:
    comparison = pykmm.compare("mmap1[iterations=1]", ["mmap_sem", "spf"], ["native", "host", "check"],
                               ["x86", "x86-paravirt"], cpus=2, baseline="spf", max_executions=50)
    assert [(r.strategy, r.engine, r.arch) for r in comparison.rows if r.engine != "host"] == [
        (strategy, engine, arch) for engine in ("native", "check") for arch in ("x86", "x86-paravirt")
        for strategy in ("mmap_sem", "spf")]
    assert next(r for r in comparison.rows if r.strategy == "spf").ratio == 1
    assert comparison.checks_ok
    values = json.loads(comparison.to_json())
    assert values["baseline"] == "spf"
    assert values["rows"][-1]["check"]["executions"] >= 1
    assert {"rate", "rates", "unit", "median_s", "quartiles_s", "ratios", "oversubscribed"} <= set(values["rows"][0])
    shown = text(comparison)
    for word in ("searched for races", "no violation", "spf (x86-paravirt)", "linux", "rate / spf"):
        assert word in shown


def test_rates_are_compared_where_pages_differ() -> None:
    """With 64 KiB pages the same memory is a sixteenth of the faults: less time, but not that much faster."""
    comparison = pykmm.compare("faults[access=read,size=4M]", ["mmap_sem"], ["native"], ["x86", "ppc64"], repeats=3)
    small, large = comparison.rows
    assert (small.faults, large.faults) == (1024, 64)
    assert large.speedups == [pytest.approx(64 / mine / (1024 / other))
                              for mine, other in zip(large.times, small.times, strict=True)]
    assert large.speedups == large.scaling
    assert small.speedups == [1, 1, 1]
    shown = text(comparison)
    assert f"{statistics.median(large.speedups):.2f}" in next(line for line in shown.splitlines() if "(ppc64)" in line)


def test_a_violation_is_a_result() -> None:
    tape = pykmm.Tape()
    area = tape.setup.mmap(4096)
    tape.thread().store(area, b"A")
    tape.thread().store(area, b"B")
    tape.final.load(area, 1, expect=b"A")
    comparison = pykmm.compare(tape, ["spf"], ["check"])
    assert not comparison.checks_ok
    assert "VIOLATION" in text(comparison)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"tape": []}, "nothing to compare"), ({"tape": "nope"}, "unknown workload"), ({"cpus": []}, "no number of CPUs"),
    ({"cpus": 0}, "1 to 4096"), ({"engines": ["warp"]}, "unknown engine 'warp'; known: native, host, check"),
    ({"engines": []}, "no engine given"), ({"warmup": -1}, "warmup"), ({"max_executions": 0}, "max_executions"),
    ({"baseline": "spf"}, "'spf' is not compared; compared: mmap_sem"),
    ({"tape": "mmap1[threads=2]", "cpus": [1]}, "exclude each other"),
    ({"tape": make("mmap1", 3), "cpus": [4, 2]}, "needs 3 CPUs, not 2"),
])
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pykmm.compare(**{"tape": SMALL, "strategies": ["mmap_sem"], **arguments})


# -- tables -----------------------------------------------------------------------------------------------

def test_rates_have_units() -> None:
    assert [format_rate(v) for v in (0.5, 12, 912, 9_120, 45_600, 456_000, 4_560_000, 3.2e9)] == [
        "0.5", "12", "912", "9.12k", "45.6k", "456k", "4.56M", "3.20G"]


def test_summary_has_a_column_per_strategy() -> None:
    rows = []
    for workload in ("first[size=4K]", "second"):
        rows += [row("a", 1, [1, 1], 10, workload=workload), row("b", 1, [2, 2], 10, workload=workload),
                 row("a", 4096, [2, 2], 10, workload=workload), row("b", 4096, [1, 1], 10, workload=workload)]
        _pair(rows[-4:], "a")
    comparison = Comparison(pykmm.Tape(), rows, 2, "a")
    shown = text(comparison)
    assert "first[size=4K]" in shown        # not taken as markup
    assert "4096*" in shown
    assert shown.count("above 1: faster") == 2
    line = next(line for line in shown.partition("as many CPUs")[2].splitlines() if "4096*" in line)
    assert line.split()[-4:] == ["1.00", "\N{BOX DRAWINGS LIGHT VERTICAL}", "2.00", "\N{BOX DRAWINGS LIGHT VERTICAL}"]
    notes = " ".join(footnotes(comparison))
    assert "oversubscribed" in notes
    assert "median of 2 runs" in notes
    assert "oversubscribed" not in " ".join(footnotes(Comparison(pykmm.Tape(), rows[:2], 2, "a")))
    assert not list(summary_tables(Comparison(pykmm.Tape(), [row("a", 1, [1.0])], 1, "a")))


def test_suites_name_workloads_that_exist() -> None:
    for suite in SUITES.values():
        assert suite.description
        for name in suite.workloads:
            assert make(name, suite.cpus[-1]).work.total


def test_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    assert module.processors() == 3
    assert row("a", 4, [1.0]).oversubscribed
    assert not row("a", 3, [1.0]).oversubscribed
    assert not row("a", 4, [1.0], engine="check").oversubscribed


# -- what is no measurement -------------------------------------------------------------------------------

def test_no_figure_where_memory_ran_out() -> None:
    with pytest.raises(pykmm.RunError, match=r"^faults\[size=4M\] under spf on native: no figure, as operation 1: "
                                             r"touch .*out of simulated memory \(--memory or memory= sets it\)"):
        pykmm.compare("faults[size=4M]", ["spf"], memory="1M")


def test_no_figure_where_an_operation_of_a_workload_failed() -> None:
    tape = pykmm.Tape()
    area = tape.setup.mmap(4096)
    thread = tape.thread()
    thread.touch(area, 4096, "write")
    thread.munmap(area + 1, 4096)
    module_finish(tape, "faults", [1], 4096)
    with pytest.raises(pykmm.RunError, match=r"under spf on native: .*munmap .*failed: EINVAL$"):
        pykmm.compare(tape, ["spf"])
    with pykmm.Machine(cpus=1) as machine, pytest.raises(pykmm.RunError, match="EINVAL"):
        machine.run(tape).rate  # noqa: B018


def test_a_failure_that_was_expected_is_work_done() -> None:
    tape = pykmm.Tape()
    area = tape.setup.mmap(4096)
    thread = tape.thread()
    thread.munmap(area + 1, 4096, expect_errno="EINVAL")
    module_finish(tape, "calls", [1], 0)
    assert pykmm.compare(tape, ["spf"]).rows[0].rates


def test_a_fault_in_a_race_is_work_done() -> None:
    tape = pykmm.Tape()
    thread = tape.thread()
    thread.touch(1 << 20, 1, "read")
    module_finish(tape, "reads", [1], 0)
    with pytest.raises(pykmm.RunError, match=r"touch at 0x100000 failed: EFAULT \(MAPERR\)"):
        pykmm.compare(tape, ["spf"], ["host"])
    module_finish(tape, "reads", [1], 0, races=True)
    assert [r.engine for r in pykmm.compare(tape, ["spf"], ["native", "host"]).rows if r.rates] == ["native", "host"]


def test_other_failures_of_a_tape_without_work_are_results() -> None:
    tape = pykmm.Tape()
    tape.thread().munmap(1, 4096)
    assert pykmm.compare(tape, ["spf"]).rows[0].result.errnos.tolist() == [22]


def test_a_tape_that_starves_is_no_measurement() -> None:
    tape = pykmm.Tape()
    tape.thread().touch(tape.setup.mmap(4 << 20), 4 << 20, "write")
    with pykmm.Machine(cpus=1, memory="1M") as machine:
        result = machine.run(tape)
    assert result.errnos.tolist() == [0, errno.ENOMEM]
    with pytest.raises(pykmm.RunError, match="out of simulated memory"):
        result.require_success()
    with pytest.raises(pykmm.RunError, match="out of simulated memory"):
        pykmm.compare(tape, ["spf"], memory="1M")


@pytest.mark.parametrize("engine", ["native", "host"])
def test_more_memory_than_the_host_has(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr("pykmm.machine.available_memory", lambda: 1 << 20)
    with pytest.raises(MemoryError, match=r"faults\[size=4M\] needs 4M of memory, and the host has 1M available"):
        pykmm.compare("faults[size=4M]", ["spf"], [engine])
    monkeypatch.setattr("pykmm.machine.available_memory", lambda: 4 << 20)
    assert pykmm.compare("faults[size=4M]", ["spf"], [engine]).rows[0].rates


# -- the check engine: length and memory ------------------------------------------------------------------

def test_a_search_gets_memory() -> None:
    """The default of a tape, 1M, is too little for either."""
    for what in ("page_fault1[size=1M]", "ebizzy[records=1]"):
        row_ = pykmm.compare(what, ["mmap_sem"], ["check"], cpus=2, max_executions=3).rows[0]
        assert row_.report.ok
        assert row_.report.executions == 3


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_search_that_runs_out_of_memory_says_so(cpus: int) -> None:
    """On one CPU there is a single execution."""
    with pytest.raises(MemoryError, match="an execution does not fit into the simulated memory .*memory="):
        pykmm.compare("page_fault1[size=2M]", ["mmap_sem"], ["check"], cpus=cpus, max_executions=3, memory="1M")


def test_a_long_execution_is_no_livelock() -> None:
    report = pykmm.compare("page_fault1[size=12M]", ["mmap_sem"], ["check"], cpus=1, max_executions=1).rows[0].report
    assert report.ok
    assert report.steps > 100_000


def test_a_tape_that_is_too_long_for_a_search_is_refused_before_anything_runs() -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match=r"mtest06 is too long for the check engine: [0-9,]+ operations with .* steps, "
                                         r"and it takes .*\(mtest06 has size=4K, iterations=1000, reads=8\)"):
        pykmm.compare("mtest06", ["spf"], ["native", "check"], cpus=4, progress=said.append)
    assert not said
