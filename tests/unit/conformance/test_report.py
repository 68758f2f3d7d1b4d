# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/conformance/report.py and counters.py: words and figures."""
from __future__ import annotations

import json

import pytest

from pykmm.conformance.counters import counter_problems
from pykmm.conformance.report import CheckResult, ConformanceReport, Failure, limited

REPORT = ConformanceReport("strategy", "mine", "x86", "quick", 3, [
    CheckResult("basics", "first accesses", "pass", "30 accesses", 0.5),
    CheckResult("leaks", "nothing is left", "fail", "6 spaces", 0.25, [Failure("3 frames\nmore", "replay: pykmm x")]),
    CheckResult("stress", "threads", "skip", "leaks failed", 0.0)])


def test_text() -> None:
    lines = str(REPORT).splitlines()
    assert lines[0] == "conformance of strategy mine on x86 (quick, seed 3)"
    assert lines[4] == "basics  pass       0.50  30 accesses"
    assert lines[5] == "leaks   FAIL       0.25  6 spaces"
    assert "leaks, failure 1 of 1 (nothing is left)" in lines
    assert lines[lines.index("    3 frames") + 1:][:2] == ["    more", "    replay: pykmm x"]
    assert lines[-1] == "FAILED: leaks; not made: stress"
    assert not REPORT.ok
    assert REPORT.seconds == 0.75


def test_lookup_and_json() -> None:
    assert REPORT["leaks"].failures == REPORT.failures
    with pytest.raises(KeyError, match="no check 'luck'; made: basics, leaks, stress"):
        REPORT["luck"]
    found = json.loads(json.dumps(REPORT.to_json()))
    assert [check["status"] for check in found["checks"]] == ["pass", "fail", "skip"]
    assert found["checks"][1]["failures"][0]["replay"] == "replay: pykmm x"


def test_many_failures_are_counted() -> None:
    found = limited([Failure(str(n)) for n in range(8)], 3)
    assert [failure.message for failure in found] == ["0", "1", "2", "and 5 more"]
    assert len(limited([Failure("x")] * 3, 3)) == 3


VMSTAT = {"pgfault": 10, "fault_mmap_sem": 3}
GOOD = {"attempts": 10, "successes": 7, "retried": 3, "moved": 1, "busy": 2}


@pytest.mark.parametrize(("changes", "words"), [
    ({}, []),
    ({"attempts": 9}, ["attempts is 9, the machine took 10", "attempts 9 is not successes 7 + retried 3"]),
    ({"busy": 1}, ["retried is 3, the reasons of aborts sum up to 2"]),
    ({"retried": 2, "successes": 8, "busy": 1}, ["3 faults went through handle_fault_mmap_sem(), retried is 2"]),
    ({"moved": -1, "busy": 4}, ["moved went down by 1"]),
])
def test_counters_that_do_not_add_up(changes: dict[str, int], words: list[str]) -> None:
    found = counter_problems(GOOD | changes, VMSTAT)
    assert len(found) == len(words), found
    for text, word in zip(found, words):
        assert word in text


def test_other_designs_of_counters() -> None:
    classic = {"attempts": 10, "successes": 6, "retried": 0, "errors": 4}
    assert counter_problems(classic, {"pgfault": 10, "fault_mmap_sem": 10}) == []
    assert counter_problems(GOOD | {"gup_fast": 99, "walks_skipped": 3, "stat_spins": 5}, VMSTAT) == []
    assert len(counter_problems(GOOD | {"walked": 3}, VMSTAT)) == 1
