# SPDX-License-Identifier: GPL-2.0-only
"""What runs look like to a reader: maps and their differences, tables, JSON."""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pykmm.counters import counter_roles

if TYPE_CHECKING:
    from rich.table import Table

    from pykmm.comparison import Comparison, Row
    from pykmm.machine import RunResult
    from pykmm.tape import MapsLine, Notes

__all__ = ["add_column", "add_row", "comparison_table", "count_list", "counter_groups", "format_maps", "format_time",
           "maps_diff", "new_table", "note_lines", "run_json", "workload_name"]

#: The column of counters that are not about faults; there only where one is not 0.
OTHER_COUNTERS = "other counters"


def format_maps(lines: Iterable[MapsLine]) -> str:
    """The text of /proc/PID/maps, one line each."""
    return "".join(f"{line}\n" for line in lines)


def _known_name(name: str) -> bool:
    """Whether a name is one that Linux would show, not a stand-in for a file that the recording does not name."""
    return name == "" or name.startswith(("/", "["))


def _key(line: MapsLine, name: str) -> str:
    offset = line.offset if name.startswith("/") or not _known_name(name) else 0
    return f"{line.start:012x}-{line.end:012x} {line.perms} {offset:08x} {name}".rstrip()


def diff_maps(expected: Sequence[MapsLine], found: Sequence[MapsLine]) -> list[str]:
    """Unified diff of ranges, permissions, offsets and names; empty = the same.

    The vsyscall page is left out: it is the kernel's own gate, no mapping of the process. A file that the
    recording does not name takes the name that was expected at its address, and so does one that was deleted while it
    was mapped: no recorded call shows that.
    """
    want = [line for line in expected if line.name != "[vsyscall]"]
    got = [line for line in found if line.name != "[vsyscall]"]
    names = {line.start: line.name for line in want}
    left = [_key(line, line.name) for line in want]
    right = []
    for line in got:
        name = line.name
        expected_name = names.get(line.start, "")
        if expected_name == f"{name} (deleted)":
            name = expected_name
        if not _known_name(name):
            name = expected_name if expected_name.startswith("/") else name
        right.append(_key(line, name))
    return list(difflib.unified_diff(left, right, "recorded end maps", "maps of the replay", n=1, lineterm=""))


def maps_diff(result: RunResult) -> list[str]:
    """As :func:`diff_maps`, for every address space with recorded end maps. A missing one is a difference."""
    lines: list[str] = []
    for mm, expected in sorted(result.tape.end_maps.items()):
        lines += diff_maps(expected, result.maps.get(mm, []))
    return lines


def format_time(seconds: float) -> str:
    """Seconds with a unit that leaves three or four digits."""
    if seconds >= 1:
        return f"{seconds:.3f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3f} ms"
    return f"{seconds * 1e6:.1f} us"


def workload_name(source: str) -> str:
    """What a tape is called where it has no name: one that a program has made."""
    return source or "tape"


class CounterGroups(NamedTuple):
    """A strategy's counters, by what they are about."""

    first: list[tuple[str, int]]    #: attempts, successes, retried
    aborts: list[tuple[str, int]]   #: faults that did not succeed: by reason, and errors
    other: list[tuple[str, int]]    #: not about faults


def counter_groups(counters: dict[str, int]) -> CounterGroups:
    """As :func:`pykmm.counters.counter_roles` has them, with their values."""
    roles = counter_roles(counters)
    known = {*roles.first, *roles.other}
    return CounterGroups([(name, counters[name]) for name in roles.first],
                         [(name, count) for name, count in counters.items() if name not in known],
                         [(name, counters[name]) for name in roles.other])


def count_list(counters: Iterable[tuple[str, int]]) -> str:
    """Those that are not 0, in a line."""
    return ", ".join(f"{name} {count:,}" for name, count in counters if count)


# Text, not str, wherever a name goes: rich takes what stands in brackets in a str for markup, and ":x:" for an emoji.

def new_table(title: str | None = None) -> Table:
    """A table with a title to be taken as it is."""
    from rich.table import Table
    from rich.text import Text

    return Table(title=None if title is None else Text(title, style="bold"), title_justify="left")


def add_column(table: Table, name: str, **how: Any) -> None:
    """As Table.add_column(), of a name to be taken as it is."""
    from rich.text import Text

    table.add_column(Text(name), **how)


def add_row(table: Table, cells: Iterable[str]) -> None:
    """As Table.add_row(), of cells to be taken as they are."""
    from rich.text import Text

    table.add_row(*map(Text, cells))


def _count(number: int) -> str:
    return f"{number:,}"


def comparison_table(comparison: Comparison, title: str | None = None) -> Table:
    """One table: a row per strategy and engine, ratios to the first row."""
    table = new_table(title)
    for name in ("strategy", "engine"):
        table.add_column(name, no_wrap=True)
    for name in ("time", "ratio", "faults", "faults/s", "attempted", "resolved", "retried"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("aborted by reason", overflow="fold")
    many = len({row.arch for row in comparison.rows if row.engine != "host"}) > 1
    other = [count_list(counter_groups(row.counters).other) for row in comparison.rows]
    if any(other):
        table.add_column(OTHER_COUNTERS, overflow="fold")
    for row, text in zip(comparison.rows, other, strict=True):
        add_row(table, [*_cells(row, many), *([text or "-"] if any(other) else [])])
    return table


def _cells(row: Row, with_arch: bool) -> list[str]:
    first, aborts, _ = counter_groups(row.counters)
    values = dict(zip(("attempts", "successes", "retried"), (value for _, value in first), strict=False))
    name = f"{row.strategy} ({row.arch})" if with_arch and row.engine != "host" else row.strategy
    return [
        name, row.engine, format_time(row.elapsed), f"{row.ratio:.2f}", _count(row.faults),
        _count(round(row.faults_per_s)),
        _count(values["attempts"]) if "attempts" in values else "-",    # a plugin may count less
        _count(values["successes"]) if "successes" in values else "-",      # in the strategy's own way
        _count(values["retried"]) if "retried" in values else "-",
        count_list(aborts) or "-",
    ]


def note_lines(notes: Notes) -> list[str]:
    """What a reader should know about a recording, one sentence each."""
    lines = []
    if notes.assumed:
        total = sum(notes.assumed.values())
        shown = ", ".join(f"{name or 'anonymous'} {count}" for name, count in list(notes.assumed.items())[:6])
        more = ", ..." if len(notes.assumed) > 6 else ""
        lines.append(f"{total} mapping{'s' if total != 1 else ''} assumed from evidence: {shown}{more}")
    for kind, count in notes.unknown.items():
        example = notes.examples.get(kind, "")
        lines.append(f"{count} line{'s' if count != 1 else ''} not understood ({kind}), first: {example}")
    lines += notes.remarks
    return lines


def run_json(result: RunResult) -> dict[str, Any]:
    """Every figure of a run, for json.dump()."""
    return {
        "engine": result.engine, "strategy": result.strategy, "arch": result.arch, "cpus": result.cpus,
        "elapsed_s": result.elapsed, "faults": result.faults, "faults_per_s": result.faults_per_s,
        "counters": dict(result.counters), "vmstat": dict(result.vmstat), "streams_s": list(result.streams),
        "mismatch_count": result.mismatch_count, "mismatches": list(result.mismatches),
        "failed_operations": int((result.errnos != 0).sum()), "operations": len(result.results),
        "maps_diff": result.maps_diff(),
        "maps": {str(mm): [str(line) for line in lines] for mm, lines in result.maps.items()},
    }
