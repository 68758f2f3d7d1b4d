# SPDX-License-Identifier: GPL-2.0-only
"""Comparisons as tables: one per tape, and a summary with a column per strategy."""
from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from pykmm.comparison import Spread, processors
from pykmm.report import (
    OTHER_COUNTERS,
    add_column,
    add_row,
    count_list,
    counter_groups,
    format_time,
    new_table,
    workload_name,
)

if TYPE_CHECKING:
    from rich.table import Table

    from pykmm.comparison import Comparison, Row

__all__ = ["comparison_tables", "cpus_label", "footnotes", "format_rate", "row_label", "summary_tables"]


def format_rate(value: float) -> str:
    """A rate with three or four digits: 912, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            digits = 2 if value < 10 * limit else 1 if value < 100 * limit else 0
            return f"{value / limit:.{digits}f}{unit}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cpus_label(row: Row) -> str:
    """The number of CPUs; with a star where there are fewer processors than threads."""
    return f"{row.cpus}{'*' if row.oversubscribed else ''}"


def row_label(comparison: Comparison, row: Row) -> str:
    """Strategy, and what distinguishes rows of one strategy: the arch, the engine."""
    simulated = [other for other in comparison.rows if other.engine != "host"]
    more = []
    if row.engine != "host" and len({other.arch for other in simulated}) > 1:
        more.append(row.arch)
    if row.engine == "host":
        return "linux (host)"
    if len({other.engine for other in simulated if other.timed}) > 1:
        more.append(row.engine)
    return f"{row.strategy} ({', '.join(more)})" if more else row.strategy


def _spread(low: float, high: float) -> str:
    return f"{low:.2f}-{high:.2f}"


def _outcome(row: Row) -> str:
    """How faults ended: the share that the strategy resolved its own way, and why others were given up."""
    first, aborts, _ = counter_groups(row.counters)
    if len(first) < 2 or not first[0][1]:
        return "-"
    name, successes = first[1]
    text = f"{successes / first[0][1]:.2%} {name}"
    why = count_list(aborts)
    return f"{text}; {why}" if why else text


def _timed_table(comparison: Comparison, workload: str, rows: list[Row], without: Collection[str] = ()) -> Table:
    counted = bool(rows[0].rates)
    scaled = counted and len({row.cpus for row in rows}) > 1
    other = [count_list(counter_groups(row.counters).other) for row in rows]
    table = new_table(workload_name(workload))
    columns = ["CPUs", "strategy", "engine", "median", "spread", "fastest",
               f"{'rate' if counted else 'time'} / {comparison.baseline}", "quartiles",
               *([f"rate / {comparison.baseline} on {min(row.cpus for row in rows)}"] if scaled else []), "faults",
               "outcome of faults", *([OTHER_COUNTERS] if any(other) else [])]
    shown = [name not in without and not ("scaling" in without and name.startswith("rate / ") and " on " in name)
             for name in columns]
    for name, show in zip(columns, shown, strict=True):
        if show:
            left = name in ("strategy", "engine", "outcome of faults", OTHER_COUNTERS)
            # Where there is no room a header goes over several lines; a name is folded, a figure never cut.
            add_column(table, name, justify="left" if left else "right", overflow="fold",
                       no_wrap=name in ("CPUs", "engine", "median", "spread", "fastest", "quartiles", "faults"))
    last = None
    for row, more in zip(rows, other, strict=True):
        if last is not None and row.cpus != last:
            table.add_section()
        last = row.cpus
        if counted:
            figures = [f"{format_rate(row.rate.median)} {row.unit}/s", f"±{row.rate.percent:.1f} %",
                       format_rate(max(row.rates))]
        else:
            figures = [format_time(row.time.median), f"±{row.time.percent:.1f} %", format_time(row.elapsed)]
        ratio = Spread.of(row.speedups if counted else row.ratios)
        name = row.strategy if len({other.arch for other in rows if other.engine != "host"}) < 2 or \
            row.engine == "host" else f"{row.strategy} ({row.arch})"
        cells = [cpus_label(row), name, row.engine, *figures, f"{ratio.median:.2f}",
                 _spread(ratio.low, ratio.high), *([f"{statistics.median(row.scaling):.2f}"] if scaled else []),
                 f"{row.faults:,}", _outcome(row), *([more or "-"] if any(other) else [])]
        add_row(table, (cell for cell, show in zip(cells, shown, strict=True) if show))
    return table


#: Columns that a narrow terminal does without, in this order.
_DISPENSABLE = (OTHER_COUNTERS, "scaling", "faults", "fastest", "outcome of faults", "quartiles")


def _fitting(build: Callable[[Collection[str]], Table], width: int | None) -> Table:
    """The table with as many of its columns as fit into so many characters; None: all."""
    table = build(())
    if width is None:
        return table
    from rich.console import Console

    console = Console(width=10_000)
    for count in range(1, len(_DISPENSABLE) + 1):
        if console.measure(table).minimum <= width:
            break
        table = build(_DISPENSABLE[:count])
    return table


def _check_table(workload: str, rows: list[Row]) -> Table:
    table = new_table(f"{workload_name(workload)}: searched for races")
    for name in ("CPUs", "strategy", "arch", "executions", "steps", "result"):
        table.add_column(name, no_wrap=name != "result", overflow="fold",
                         justify="right" if name in ("CPUs", "executions", "steps") else "left")
    for row in rows:
        report = row.report
        assert report is not None
        if report.violations:
            result = f"VIOLATION: {report.violations[0].kind}: {report.violations[0].message.partition(chr(10))[0]}"
        else:
            result = "no violation, exhaustive" if report.complete else "no violation so far: limit of executions"
        add_row(table, [str(row.cpus), row.strategy, row.arch, f"{report.executions:,}", f"{report.steps:,}", result])
    return table


def comparison_tables(comparison: Comparison, width: int | None = None) -> Iterator[Table]:
    """A table per tape; where the check engine ran, a second one.

    `width`: characters of a line; figures that do not fit are left out (``--json`` has all of them).
    """
    for workload in comparison.workloads:
        rows = comparison.of(workload)
        timed = [row for row in rows if row.timed]
        if timed:
            yield _fitting(lambda without, workload=workload, timed=timed:  # type: ignore[misc]
                           _timed_table(comparison, workload, timed, without), width)
        checked = [row for row in rows if row.report is not None]
        if checked:
            yield _check_table(workload, checked)


def summary_tables(comparison: Comparison, width: int | None = None) -> Iterator[Table]:
    """Two tables with a row per workload and number of CPUs and a column per strategy; where these do not fit into
    `width` characters, a row per strategy.

    Rates relative to the baseline on as many CPUs, and to the baseline on the fewest: medians of the paired ratios,
    above 1 is faster. Only of workloads, which have a rate.
    """
    rows = [row for row in comparison.rows if row.rates]
    if not rows:
        return
    yield _pivot(comparison, rows, f"rate / rate of {comparison.baseline} on as many CPUs (above 1: faster)",
                 lambda row: f"{statistics.median(row.speedups):.2f}", width)
    if len({row.cpus for row in rows}) > 1:
        least = min(row.cpus for row in rows)
        where = "1 CPU" if least == 1 else f"{least} CPUs"
        yield _pivot(comparison, rows, f"rate / rate of {comparison.baseline} on {where} (above 1: faster)",
                     lambda row: f"{statistics.median(row.scaling):.2f}", width)


def _pivot(comparison: Comparison, rows: list[Row], title: str, cell: Callable[[Row], str],
           width: int | None) -> Table:
    labels = list(dict.fromkeys(row_label(comparison, row) for row in rows))
    table = new_table(title)
    table.add_column("workload")
    table.add_column("CPUs", justify="right", no_wrap=True)
    add_column(table, f"{comparison.baseline}, rate", justify="right", no_wrap=True)
    for label in labels:
        add_column(table, label, justify="right")
    last = None
    for workload, cpus in dict.fromkeys((row.workload, row.cpus) for row in rows):
        group = [row for row in rows if (row.workload, row.cpus) == (workload, cpus)]
        base = next((row for row in group if row.strategy == comparison.baseline), group[0])
        if last is not None and last != workload:
            table.add_section()
        cells = {row_label(comparison, row): cell(row) for row in group}
        add_row(table, ["" if last == workload else workload, cpus_label(group[0]),
                        f"{format_rate(base.rate.median)} {base.unit}/s", *(cells.get(label, "-") for label in labels)])
        last = workload
    if width is not None:
        from rich.console import Console

        if Console(width=10_000).measure(table).maximum > width:
            return _turned(comparison, rows, title, cell)
    return table


def _turned(comparison: Comparison, rows: list[Row], title: str, cell: Callable[[Row], str]) -> Table:
    """The same with a row per strategy."""
    table = new_table(title)
    table.add_column("strategy", overflow="fold")
    groups = {(row.workload, row.cpus): cpus_label(row) for row in rows}
    for (workload, _), cpus in groups.items():
        add_column(table, f"{workload} on {cpus}", justify="right", overflow="fold")
    for label in dict.fromkeys(row_label(comparison, row) for row in rows):
        mine = {(row.workload, row.cpus): cell(row) for row in rows if row_label(comparison, row) == label}
        add_row(table, [label, *(mine.get(group, "-") for group in groups)])
    return table


def footnotes(comparison: Comparison) -> list[str]:
    """What a reader of the tables should know, a sentence each."""
    timed = [row for row in comparison.rows if row.timed]
    lines = []
    if timed:
        runs = f"{comparison.repeats} runs" if comparison.repeats > 1 else "1 run"
        lines.append(f"median of {runs}, ± half the distance of the quartiles; ratios are medians of ratios run by run")
        if any(row.rates for row in timed):
            lines.append("rates are those of the threads' work, without setup; above 1 is faster")
        if not all(row.rates for row in timed):
            lines.append("times: a ratio below 1 is faster")
    if any(row.oversubscribed for row in timed):
        lines.append(f"* oversubscribed: more threads than processors ({processors()}), so the figures depend on the "
                     "scheduler as much as on locks")
    return lines
