# SPDX-License-Identifier: GPL-2.0-only
"""Tapes and workloads under several strategies, arches, engines and CPU counts, side by side.

Runs of one tape are interleaved (A B C, A B C, ...) and ratios are paired: the n-th run of a row is divided by the n-th
run of the row that it is compared with, which stood beside it in time. A ratio is the median of those, and its spread
their quartiles: what slows a machine down for a while hits both runs of a pair.
"""
from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pykmm.machine import ENGINES, Machine, RunResult, check_names, memory_needed, page_size, parse_size, run_host

if TYPE_CHECKING:
    from pykmm.checking.report import CheckReport
    from pykmm.tape import Tape

__all__ = ["COMPARE_ENGINES", "Comparison", "Row", "Spread", "compare", "processors"]

#: Engines that compare() knows. The check engine has no clock: its rows say what a search found.
COMPARE_ENGINES = (*ENGINES, "check")
#: Executions of a search where no limit is given.
EXECUTIONS = 2000


class Spread(NamedTuple):
    """The median of some figures and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one figure."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def percent(self) -> float:
        """Half the distance of the quartiles, in per cent of the median."""
        return (self.high - self.low) / 2 / self.median * 100 if self.median else 0.0


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass
class Row:
    """One strategy on one arch, engine and number of CPUs; every run of it."""

    strategy: str
    engine: str
    arch: str
    elapsed: float              #: seconds of the fastest run (a workload: without its setup)
    ratio: float                #: time / that of the baseline: the median of the paired ratios; below 1 is faster
    faults: int                 #: of the fastest run, as the figures below
    faults_per_s: float
    counters: dict[str, int]
    times: list[float]          #: seconds of every run
    result: RunResult | None = field(repr=False)    #: the fastest run; None on the check engine
    workload: str = ""          #: the tape's source
    cpus: int = 0               #: simulated CPUs; of a workload its threads= parameter
    threads: int = 0            #: threads of the tape that may run at the same time
    unit: str = ""              #: what a workload counts
    rates: list[float] = field(default_factory=list)    #: units per second of every run
    ratios: list[float] = field(default_factory=list)   #: times / those of the baseline, run by run
    #: rates / those of the baseline, run by run (where pages differ, so does what is counted in that time)
    speedups: list[float] = field(default_factory=list)
    #: rates / those of the baseline on the smallest number of CPUs, run by run
    scaling: list[float] = field(default_factory=list)
    report: CheckReport | None = field(default=None, repr=False)    #: of the check engine

    @property
    def time(self) -> Spread:
        """Seconds."""
        return Spread.of(self.times)

    @property
    def rate(self) -> Spread:
        """Units per second; ValueError without any."""
        return Spread.of(self.rates)

    @property
    def timed(self) -> bool:
        """Whether this row has times."""
        return bool(self.times)

    @property
    def oversubscribed(self) -> bool:
        """Whether it had more threads than processors: then it says as much about the scheduler as about locks."""
        return self.engine != "check" and self.threads > processors()

    def to_dict(self) -> dict[str, Any]:
        """Every figure, in plain types."""
        from pykmm.report import run_json

        values: dict[str, Any] = {
            "workload": self.workload, "strategy": self.strategy, "engine": self.engine, "arch": self.arch,
            "cpus": self.cpus, "threads": self.threads, "oversubscribed": self.oversubscribed,
        }
        if self.report is not None:
            values["check"] = self.report.to_json()
            return values
        values |= {
            "elapsed_s": self.elapsed, "median_s": self.time.median, "quartiles_s": [self.time.low, self.time.high],
            "ratio": self.ratio, "ratios": self.ratios, "faults": self.faults, "faults_per_s": self.faults_per_s,
            "counters": self.counters, "times_s": self.times,
            "run": None if self.result is None else run_json(self.result),
        }
        if self.rates:
            values |= {"unit": self.unit, "rate": self.rate.median, "rate_quartiles": [self.rate.low, self.rate.high],
                       "rates": self.rates, "speedups": self.speedups, "scaling": self.scaling}
        return values


@dataclass
class Comparison:
    """What compare() measured."""

    tape: Tape = field(repr=False)      #: the first one
    rows: list[Row]
    repeats: int = 1
    baseline: str = ""                  #: the strategy that ratios refer to

    @property
    def maps_ok(self) -> bool:
        """Whether every row ended with the recorded maps (true when none were recorded)."""
        return not any(row.result.maps_diff() for row in self.rows if row.result is not None)

    @property
    def checks_ok(self) -> bool:
        """Whether no search of the check engine found a violation."""
        return all(row.report.ok for row in self.rows if row.report is not None)

    @property
    def workloads(self) -> list[str]:
        """Sources of the tapes, in order."""
        return list(dict.fromkeys(row.workload for row in self.rows))

    def of(self, workload: str) -> list[Row]:
        """The rows of one of them."""
        return [row for row in self.rows if row.workload == workload]

    def to_dict(self) -> dict[str, Any]:
        """Every figure, in plain types."""
        from pykmm.report import note_lines

        return {
            "trace": self.tape.source, "importer": self.tape.importer, "summary": self.tape.summary(),
            "recorded_faults": dict(self.tape.notes.faults), "notes": note_lines(self.tape.notes),
            "workloads": self.workloads, "baseline": self.baseline, "repeats": self.repeats,
            "processors": processors(), "rows": [row.to_dict() for row in self.rows], "maps_ok": self.maps_ok,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """to_dict() as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture (.png or .svg). ValueError: another suffix, nothing to draw, or matplotlib is missing."""
        from pykmm.comparison_plot import plot

        plot(self, path)

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        from pykmm.comparison_report import comparison_tables

        out = StringIO()
        console = Console(file=out, width=400)
        for table in comparison_tables(self):
            console.print(table)
        return out.getvalue()


@dataclass
class _Plan:
    """A row to be, and the tape that it runs."""

    tape: Tape
    strategy: str
    engine: str
    arch: str
    cpus: int
    memory: int
    runs: list[RunResult] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.strategy} on {self.engine}" + (f", {self.cpus} CPUs" if self.cpus else "")

    def run(self) -> RunResult:
        if self.engine == "host":
            result: RunResult = run_host(self.tape)
            result.require_success()
            return result
        with Machine(arch=self.arch, strategy=self.strategy, cpus=max(self.cpus, self.tape.program().nstreams)
                     if self.tape.work is not None else self.cpus, memory=self.memory) as machine:
            result = machine.run(self.tape, self.engine)
            machine.validate()
        result.require_success()
        return result

    def row(self) -> Row:
        work = self.tape.work
        times = [run.elapsed if work is None else run.work_seconds for run in self.runs]
        best = self.runs[times.index(min(times))]
        rate = best.faults / min(times) if min(times) else 0.0
        return Row(
            self.strategy, self.engine, best.arch, min(times), 1.0, best.faults, rate, best.counters, times, best,
            self.tape.source, self.cpus, self.tape.program().nstreams, "" if work is None else work.unit,
            [] if work is None else [run.rate for run in self.runs])


def _cpu_counts(cpus: int | Iterable[int] | None) -> list[int | None]:
    if cpus is None:
        return [None]
    counts = [cpus] if isinstance(cpus, int) else list(dict.fromkeys(cpus))
    if not counts:
        raise ValueError("no number of CPUs given")
    for number in counts:
        if not 1 <= number <= 4096:
            raise ValueError(f"a number of CPUs is 1 to 4096, not {number}")
    return list(counts)


def _page_sizes(arches: Iterable[str]) -> dict[str, int]:
    """Bytes in a page, per arch; "" is the host."""
    return {"": 4096} | {arch: page_size(arch) for arch in arches}


def _tapes(what: Tape | str, counts: list[int | None], pages: set[int]) -> list[tuple[dict[int, Tape], int]]:
    """Tapes by the size of a page for each number of CPUs, and that number: of a workload that of its threads."""
    from pykmm import workload

    if not isinstance(what, str):
        needed = what.program().nstreams
        for number in counts:
            if number is not None and number < needed:
                raise ValueError(f"{what.source or 'the tape'} needs {needed} CPUs, not {number}")
        return [(dict.fromkeys(pages, what), needed if number is None else number) for number in counts]
    found = []
    for number in counts:
        tapes = {page: workload.make(what, number, page) for page in sorted(pages)}
        work = next(iter(tapes.values())).work
        assert work is not None
        found.append((tapes, number or sum(bool(count) for count in work.counts)))
    return found


def _pair(rows: list[Row], baseline: str) -> None:
    """Ratios of the rows of one tape, to the baseline on as many CPUs and to the baseline on the fewest."""
    timed = [row for row in rows if row.timed]
    first: Row | None = None
    for cpus in dict.fromkeys(row.cpus for row in timed):
        group = [row for row in timed if row.cpus == cpus]
        base = next((row for row in group if row.strategy == baseline), group[0])
        if first is None or cpus < first.cpus:
            first = base
        for row in group:
            row.ratios = [mine / other if other else 1.0 for mine, other in zip(row.times, base.times, strict=True)]
            row.ratio = statistics.median(row.ratios)
            row.speedups = [mine / other if other else 1.0 for mine, other in zip(row.rates, base.rates, strict=True)]
    for row in timed if first is not None and first.rates else []:
        assert first is not None
        row.scaling = [mine / other if other else 0.0 for mine, other in zip(row.rates, first.rates, strict=True)]


def compare(tape: Tape | str | Sequence[Tape | str], strategies: Sequence[str] = ("mmap_sem", "spf"),
            engines: Sequence[str] = ("native",), arches: Sequence[str] = ("x86",), *,
            cpus: int | Iterable[int] | None = None, memory: str | int | None = None, repeats: int = 1,
            warmup: int = 1, baseline: str | None = None, max_executions: int = EXECUTIONS,
            progress: Callable[[str], None] | None = None) -> Comparison:
    """Run tapes and workloads under each strategy, arch and number of CPUs; on the host engine once for each number.

    :param tape: a :class:`pykmm.Tape`, the name of a workload such as "page_fault1[size=64M]", or several of them
    :param engines: "native" and "host" are timed; "check" searches schedules of the tape, which has to be small
    :param cpus: a number or several: of a workload its threads, of a tape the simulated CPUs of each machine; as many
        as the tape needs, and the workload's own default, if not given
    :param memory: of each machine, like "1G"; as much as the tape needs if not given
    :param repeats: runs per row that count, interleaved with those of the other rows
    :param warmup: runs per row before those, which are not shown: the first run of a process is slower (memory that the
        process has not used yet, code that is not in the caches)
    :param baseline: the strategy that ratios refer to; the first one if not given ("linux" is the host engine)
    :param max_executions: of each search of the check engine
    :param progress: called with a few words before each run

    Rows come tape by tape, with fewer CPUs first, in the order of `engines`. A row's ``ratio`` is its time relative to
    the baseline with the same tape and CPUs, paired run by run. ValueError: unknown names, impossible numbers,
    a tape that is too long for the check engine. RunError: an operation of a workload failed, or simulated memory ran
    out: there is no figure. MemoryError: the host, or the simulated memory of a search, has too little.
    """
    strategies = check_names("strategy", strategies)
    arches = check_names("arch", arches)
    engines = list(dict.fromkeys(engines))
    for engine in engines:
        if engine not in COMPARE_ENGINES:
            raise ValueError(f"unknown engine {engine!r}; known: {', '.join(COMPARE_ENGINES)}")
    if not engines:
        raise ValueError(f"no engine given; known: {', '.join(COMPARE_ENGINES)}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, not {warmup}")
    if max_executions < 1:
        raise ValueError(f"max_executions must be at least 1, not {max_executions}")
    names = [*strategies, "linux"] if "host" in engines else strategies
    if baseline is not None and baseline not in names:
        raise ValueError(f"the baseline {baseline!r} is not compared; compared: {', '.join(names)}")
    size = None if memory is None else parse_size(memory)
    counts = _cpu_counts(cpus)
    whole: list[Tape | str] = [tape] if isinstance(tape, str) or not isinstance(tape, Sequence) else list(tape)
    if not whole:
        raise ValueError("nothing to compare")
    from pykmm.tape import Tape

    for what in whole:
        if not isinstance(what, str | Tape):
            raise TypeError(f"compare() takes a Tape or the name of a workload, not {type(what).__name__}: {what!r}")
    page = _page_sizes(arches)
    sizes = {page[arch] for arch in arches if engines != ["host"]} | ({page[""]} if "host" in engines else set())
    made = [_tapes(what, counts, sizes) for what in whole]      # wrong names are found before anything runs
    if "check" in engines:
        from pykmm.checking.tape_size import check_length

        for tapes in made:
            for by_page, _ in tapes:
                for arch in arches:
                    check_length(by_page[page[arch]], arch)
    say = progress or (lambda text: None)
    base = baseline or (strategies[0] if engines[0] != "host" else "linux")
    rows: list[Row] = []
    for tapes in made:
        plans: list[_Plan] = []
        for by_page, number in tapes:
            for engine in engines:
                if engine == "host":
                    plans.append(_Plan(by_page[page[""]], "linux", "host", "", number, 0))
                else:
                    plans += [_Plan(by_page[page[arch]], strategy, engine, arch, number,
                                    _memory(by_page[page[arch]], arch, engine) if size is None else size)
                              for arch in arches for strategy in strategies]
        timed = [plan for plan in plans if plan.engine != "check"]
        for turn in range(-warmup, repeats):
            for plan in timed:
                say(f"{plan}: " + (f"run {turn + 1} of {repeats}" if turn >= 0 else "warm-up"))
                run = plan.run()
                if turn >= 0:
                    plan.runs.append(run)
        mine = []
        for plan in plans:
            if plan.engine == "check":
                say(str(plan))
                mine.append(_search(plan, max_executions))
            else:
                mine.append(plan.row())
        _pair(mine, base)
        rows += mine
    return Comparison(next(iter(made[0][0][0].values())), rows, repeats, base)


def _memory(tape: Tape, arch: str, engine: str) -> int:
    """What a machine of one's own gets where no size is given; 0: the search says itself."""
    return 0 if engine == "check" else memory_needed(tape, arch)


def _search(plan: _Plan, max_executions: int) -> Row:
    from pykmm.checking.checker import check
    from pykmm.checking.tape_size import memory_for, steps_for

    threads = plan.tape.program().nstreams
    cpus = max(plan.cpus, threads)
    memory = str(plan.memory or memory_for(plan.tape, plan.arch, cpus))
    report = check(plan.tape, strategy=plan.strategy, arch=plan.arch, max_executions=max_executions, cpus=cpus,
                   memory=memory, max_steps=steps_for(plan.tape, plan.arch))
    return Row(plan.strategy, "check", plan.arch, 0.0, 0.0, 0, 0.0, {}, [], None, plan.tape.source, plan.cpus, threads,
               report=report)
