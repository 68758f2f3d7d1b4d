# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/report.py and comparison.py: maps differences, tables, JSON."""
from __future__ import annotations

import json

import pytest

import pykmm
from pykmm.report import diff_maps, format_maps, format_time
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
