# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/checking/cli.py: ``pykmm check``."""
from __future__ import annotations

import functools
import json
from pathlib import Path

import pykmm_command
import pytest

from pykmm.checking.cli import verdict
from pykmm.checking.report import CheckReport, Violation
from pykmm.checking.schedule import Token

pykmm = functools.partial(pykmm_command.pykmm, "check")
fails = functools.partial(pykmm_command.fails, "check")


def test_list() -> None:
    done = pykmm("--list")
    assert done.returncode == 0, done.stderr
    assert "R5-vma-freed-at-once" in done.stdout
    assert "expected: " in done.stdout
    values = json.loads(pykmm("--list", "--json", "-").stdout)
    assert {"name", "title", "race", "source", "fixed", "buggy", "expected"} <= values[0].keys()


def test_mistakes(tmp_path: Path) -> None:
    assert "unknown scenario 'nope'; 'pykmm list scenarios' shows all " in fails("nope")
    assert "unknown scenario 'R1-ptl-spi'; did you mean R1-ptl-spin" in fails("R1-ptl-spi")
    assert "nothing to check" in fails()
    assert "unknown explorer 'best'; known: dpor" in fails("R5-vma-freed-at-once", "--explorer", "best")
    assert "unknown memory model 'arm'" in fails("R5-vma-freed-at-once", "-m", "arm")
    assert "unknown variant 'odd'" in fails("R5-vma-freed-at-once", "--variant", "odd")
    assert "unknown strategy 'odd'; known: " in fails("R5-vma-freed-at-once", "--strategy", "odd")
    assert "'all' stands alone" in fails("all", "R5-vma-freed-at-once")
    assert "cut off or changed" in fails("--replay", "pykmm1:x:00000000:tso:0-1:00000000")
    assert "version 9" in fails("--replay", "pykmm9:x:00000000:tso:0-1:00000000")
    assert "No such file" in fails("--replay", tmp_path / "none")
    (tmp_path / "prose").write_text("once upon a time")
    assert "no replay token in it" in fails("--replay", tmp_path / "prose")
    token = Token("R5-vma-freed-at-once", "buggy", "00000000", "tso", (0, 1))
    assert "have changed since" in fails("--replay", token)
    assert "not of" in fails("R7-mprotect-recheck", "--replay", token)
    assert "give the file" in fails("--replay", Token("tape", "", "00000000", "tso", (0, 1)))
    assert "Invalid value" in fails("R5-vma-freed-at-once", "--jobs", "0")


def report(kinds: list[str], *, complete: bool = True, finished: bool = True, bound: int | None = None) -> CheckReport:
    return CheckReport("x", "", "", 2, "tso", "dpor", bound, 0, finished, complete, 1, 0, 0, 1, 0.1,
                       [Violation(kind, "message", ()) for kind in kinds])


@pytest.mark.parametrize(("what", "expected", "answer"), [
    (report([]), set(), (True, "clean")),
    (report([], complete=False, bound=2), set(), (True, "clean up to 2 preemptions")),
    (report([], complete=False, finished=False), set(), (True, "clean, not exhausted")),
    (report([]), {"deadlock"}, (False, "not found")),
    (report(["deadlock"]), {"deadlock", "leak"}, (True, "deadlock")),
    (report(["deadlock", "leak", "leak"]), {"leak"}, (True, "deadlock, leak")),
    (report(["deadlock"]), {"leak"}, (False, "deadlock")),
    (report(["deadlock"]), set(), (False, "deadlock")),
])
def test_verdicts(what: CheckReport, expected: set[str], answer: tuple[bool, str]) -> None:
    assert verdict(what, frozenset(expected)) == answer
