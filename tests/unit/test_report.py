# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/report.py and comparison.py: maps differences, tables, JSON."""
from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from comparison_rows import row as made
from rich.console import Console
from rich.table import Table

import pykmm
from pykmm.comparison import Comparison, _pair
from pykmm.comparison_report import comparison_tables, summary_tables
from pykmm.report import comparison_table, counter_groups, diff_maps, format_maps, format_time
from pykmm.tape import MapsLine, parse_maps

MAPS = """\
55d000000000-55d000001000 r--p 00000000 fe:00 26723                      /usr/bin/x
55d000001000-55d000003000 rw-p 00001000 fe:00 26723                      /usr/bin/x
55d000010000-55d000020000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0@
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
""".replace("@", " ")


def lines() -> list[MapsLine]:
    return parse_maps(MAPS.splitlines())


def changed(found: list[MapsLine]) -> list[str]:
    return [line for line in diff_maps(lines(), found) if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_text_round_trip() -> None:
    assert format_maps(lines()) == MAPS


def test_the_same_maps_do_not_differ() -> None:
    assert diff_maps(lines(), lines()) == []
    assert diff_maps(lines(), lines()[:-1]) == []       # the vsyscall page is not the process's


def test_a_deleted_file_is_the_file_that_was_mapped() -> None:
    expected = lines()
    expected[0] = MapsLine(0x55d000000000, 0x55d000001000, "r--p", 0, name="/usr/bin/x (deleted)")
    assert diff_maps(expected, lines()) == []
    assert len(diff_maps(lines(), expected)) > 0        # but a replay deletes nothing


@pytest.mark.parametrize(("place", "other"), [
    (0, MapsLine(0x55d000000000, 0x55d000001000, "r-xp", 0, name="/usr/bin/x")),
    (0, MapsLine(0x55d000000000, 0x55d000001000, "r--p", 0, name="/usr/bin/y")),
    (1, MapsLine(0x55d000001000, 0x55d000003000, "rw-p", 0x2000, name="/usr/bin/x")),
    (2, MapsLine(0x55d000010000, 0x55d000021000, "rw-p", 0, name="[heap]")),
    (3, MapsLine(0x7f0000000000, 0x7f0000001000, "rw-p", 0, name="[stack]")),
])
def test_every_difference_shows(place: int, other: MapsLine) -> None:
    found = lines()
    found[place] = other
    assert len(changed(found)) == 2


def test_missing_and_extra_mappings_show() -> None:
    assert [line[0] for line in changed(lines()[1:])] == ["-"]
    assert [line[0] for line in changed([*lines()[:-1], MapsLine(0x7f0000002000, 0x7f0000003000, "rw-p")])] == ["+"]


def test_a_file_without_a_recorded_name_takes_the_expected_one() -> None:
    found = lines()
    found[1] = MapsLine(0x55d000001000, 0x55d000003000, "rw-p", 0x1000, name="unknown file 3")
    assert diff_maps(lines(), found) == []
    found[1] = MapsLine(0x55d000001000, 0x55d000003000, "rw-p", 0x5000, name="unknown file 3")
    assert len(changed(found)) == 2                     # but its offset counts
    found = lines()
    found[3] = MapsLine(0x7f0000000000, 0x7f0000001000, "rw-p", name="unknown file 3")
    assert len(changed(found)) == 2                     # and where no file was, it is a difference


def test_times_have_units() -> None:
    assert [format_time(t) for t in (2.5, 0.0123456, 0.0000123)] == ["2.500 s", "12.346 ms", "12.3 us"]


def small_tape() -> pykmm.Tape:
    tape = pykmm.Tape()
    a = tape.setup.mmap(64 * 4096)
    for _ in range(2):
        tape.thread().touch(a, 64 * 4096, "write")
    tape.final.munmap(a, 64 * 4096)
    return tape


def test_compare() -> None:
    said: list[str] = []
    comparison = pykmm.compare(small_tape(), ["mmap_sem", "spf"], ["native", "host"], repeats=2, progress=said.append)
    assert [(row.strategy, row.engine) for row in comparison.rows] == [
        ("mmap_sem", "native"), ("spf", "native"), ("linux", "host")]
    assert comparison.rows[0].ratio == 1
    for row in comparison.rows:
        assert len(row.times) == 2
        assert row.elapsed == min(row.times) > 0
        assert row.ratios == [pytest.approx(mine / base)
                              for mine, base in zip(row.times, comparison.rows[0].times, strict=True)]
        assert row.ratio == pytest.approx(sum(row.ratios) / 2)
        assert row.faults_per_s == pytest.approx(row.faults / row.elapsed)
    assert 64 <= comparison.rows[0].faults <= 128
    assert said[0] == "mmap_sem on native, 2 CPUs: warm-up"
    assert len(said) == 9
    assert [text.partition(" ")[0] for text in said] == ["mmap_sem", "spf", "linux"] * 3
    assert comparison.maps_ok
    values = json.loads(comparison.to_json())
    assert [row["counters"].get("speculative") is not None for row in values["rows"]] == [False, True, False]
    assert values["rows"][0]["run"]["failed_operations"] == 0
    text = str(comparison)
    for word in ("mmap_sem", "spf", "linux", "time / mmap_sem", "quartiles", "speculative", "outcome of faults"):
        assert word in text


@pytest.mark.parametrize("arguments", [
    {"strategies": ["nope"]}, {"engines": ["nope"]}, {"arches": ["nope"]}, {"strategies": []}, {"repeats": 0},
    {"memory": "lots"}, {"cpus": 1},
])
def test_bad_comparisons(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        pykmm.compare(small_tape(), **arguments)  # type: ignore[arg-type]


def test_a_strategy_that_counts_less_has_a_table() -> None:
    from pykmm_ext.strategy_test import Mistake

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x1000, prot="rw")
    tape.thread().store(a, b"x")
    registry = pykmm.get_plugin_manager().strategies
    before = dict(registry._entries)
    registry.add("countless", lambda: Mistake("none"))
    try:
        assert "countless" in str(pykmm.compare(tape, strategies=["countless"]))
    finally:
        registry._entries = before


def shown(tables: Table | Iterable[Table], width: int = 400) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        for table in [tables] if isinstance(tables, Table) else tables:
            console.print(table)
    return capture.get()


#: What rich would take for markup or an emoji, where it may.
ODD = ("spf[recheck=off]", "spf[/]", "[bold]x[/bold]", "a:heart:b", "back\\\\[x]")


def odd() -> Comparison:
    """Rows with such names of strategies, arches, workloads, counters and units."""
    rows = [made(name, cpus, [1, 2], 9000, arch=arch, workload=workload) for workload in ("w[size=4K]", "w:heart:")
            for cpus in (1, 2) for arch in ("x[y=z]", "a2") for name in ODD]
    for row in rows:
        row.counters = {"attempts": 9, "fine[x]": 5, "retried": 4, "reason[y]": 4, "stat_[z]": 7}
        row.unit = "faults[u]"
    _pair(rows, ODD[0])
    return Comparison(pykmm.Tape(), rows, 2, ODD[0])


def test_names_are_shown_as_they_are() -> None:
    """In cells, headers and titles."""
    text = shown(comparison_table(odd(), "t[i=j]"))
    for word in (*(f" {name} (x[y=z]) " for name in ODD), " reason[y] 4 ", " stat_[z] 7 ", "t[i=j]"):
        assert word in text, word
    text = shown(comparison_tables(odd()))
    for word in (*(f" {name} (x[y=z]) " for name in ODD), f" rate / {ODD[0]} ", f" rate / {ODD[0]} on 1 ",
                 " 6.75k faults[u]/s ", " 55.56% fine[x]; reason[y] 4 ", " stat_[z] 7 ", "w[size=4K]", "w:heart:"):
        assert word in text, word
    text = shown(summary_tables(odd()))
    for word in (*(f" {name} (x[y=z]) " for name in ODD), f"rate / rate of {ODD[0]} on as many CPUs",
                 f"rate / rate of {ODD[0]} on 1 CPU", f" {ODD[0]}, rate ", " 6.75k faults[u]/s ", " w[size=4K] ",
                 " w:heart: "):
        assert word in text, word
    text = shown(summary_tables(odd(), 150), 150)       # turned: a row per strategy
    for word in (*(f" {name} (x[y=z]) " for name in ODD), " w[size=4K] on 2 ", " w:heart: on 1 "):
        assert word in text, word


def test_counters_that_are_not_about_faults_have_their_own_column() -> None:
    counters = {"attempts": 5, "successes": 3, "retried": 1, "errors": 1, "busy": 1, "gup_fast": 2048,
                "walks_skipped": 2, "walks_serialized": 0, "stat_spins": 0}
    groups = counter_groups(counters)
    assert groups.first == [("attempts", 5), ("successes", 3), ("retried", 1)]
    assert groups.aborts == [("errors", 1), ("busy", 1)]
    assert [name for name, _ in groups.other] == ["gup_fast", "walks_skipped", "walks_serialized", "stat_spins"]
    rows = [made("one", 1, [1.0]), made("two", 1, [1.0])]
    _pair(rows, "one")
    rows[0].counters = counters
    rows[1].counters = {"attempts": 5, "successes": 4, "retried": 1, "busy": 1}
    comparison = Comparison(pykmm.Tape(), rows, 1, "one")
    for table in (comparison_table(comparison), *comparison_tables(comparison)):
        cells = {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}
        assert cells["other counters"] == ["gup_fast 2,048, walks_skipped 2", "-"]
        assert [text for name in ("aborted by reason", "outcome of faults") for text in cells.get(name, [])] in (
            ["errors 1, busy 1", "busy 1"], ["60.00% successes; errors 1, busy 1", "80.00% successes; busy 1"])
    rows[0].counters = dict.fromkeys(counters, 0)
    for table in (comparison_table(comparison), *comparison_tables(comparison)):
        assert "other counters" not in [str(column.header) for column in table.columns]


def test_a_tape_without_a_name_has_a_title() -> None:
    tape = pykmm.Tape()
    tape.thread().mmap(4096)
    comparison = pykmm.compare(tape, ["spf[munmap=downgrade]"], ["native", "check"], max_executions=2)
    assert comparison.workloads == [""]
    assert [str(table.title) for table in comparison_tables(comparison)] == ["tape", "tape: searched for races"]
    assert str(comparison).count("spf[munmap=downgrade]") == 3      # a header and a cell; a cell
