# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/conformance/guard.py: a check that is lost does not take the caller with it."""
from __future__ import annotations

import os
import pathlib
import re
import signal
from typing import Any, NoReturn

import pykmm
from pykmm.conformance.guard import NOT_DONE, Outcome, guarded, note
from pykmm.conformance.report import Failure


def test_the_outcome_comes_back() -> None:
    detail, failures = guarded(lambda: ("done", [Failure("one"), Failure("two", "replay: x")]), 60)
    assert detail == "done"
    assert [str(failure) for failure in failures] == ["one", "two\nreplay: x"]


def test_one_that_never_ends() -> None:
    def endless() -> NoReturn:
        note("the endless part")
        while True:
            pass

    detail, (failure,) = guarded(endless, 0.3)
    assert detail == NOT_DONE
    assert failure.message.startswith("not done after 0 s, and ended, at: the endless part. ")


def test_one_that_crashes() -> None:
    def crash() -> Outcome:
        note("step 3")
        os.kill(os.getpid(), signal.SIGSEGV)
        return "", []

    detail, (failure,) = guarded(crash, 60)
    assert detail == NOT_DONE
    assert "killed by SIGSEGV, at: step 3." in failure.message


def test_one_that_leaves() -> None:
    _, (failure,) = guarded(lambda: os._exit(7), 60)
    assert "ended with status 7 and without a result" in failure.message


def test_an_exception_is_a_failure() -> None:
    def wrong() -> Outcome:
        raise KeyError("nothing there")

    detail, (failure,) = guarded(wrong, 60)
    assert detail == NOT_DONE
    assert failure.message == "the check ended with KeyError: 'nothing there'"
    assert "in wrong" in failure.replay
    assert "pykmm/conformance" not in failure.replay


def test_a_plugin_error_comes_without_the_adapter() -> None:
    class Nonsense(pykmm.PythonStrategy):
        name = "nonsense"

        def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
            return "x"

    def fault() -> Outcome:
        with pykmm.Machine(strategy=Nonsense(), memory="16M") as machine:
            mm = machine.mm()
            mm.load(mm.mmap(0, 0x1000, 3, 0x22), 1)
        return "", []

    _, (failure,) = guarded(fault, 60)
    assert "\npykmm.errors.PluginError: strategy 'nonsense': handle_fault() returned 'x'" in failure.replay
    assert "pykmm_ext" not in failure.replay


def children() -> set[str]:
    """Processes of this one, also those that have ended and nobody has waited for."""
    found = set()
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            parent = re.search(r"^PPid:\s*(\d+)$", status.read_text(), flags=re.MULTILINE)
        except OSError:     # it has gone meanwhile
            continue
        if parent and int(parent[1]) == os.getpid():
            found.add(status.parent.name)
    return found


def test_nothing_stays_open() -> None:
    before, others = len(os.listdir("/proc/self/fd")), children()
    for _ in range(5):
        guarded(lambda: ("", []), 60)
    assert len(os.listdir("/proc/self/fd")) == before
    assert children() <= others
