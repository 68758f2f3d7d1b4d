# SPDX-License-Identifier: GPL-2.0-only
"""Helpers for tests of pykmm and of programs and plugins that use it.

``machine`` is a pytest fixture: import it into a ``conftest.py``. The rest needs no pytest.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pykmm.checking.report import CheckReport
from pykmm.machine import Machine, MmStruct

__all__ = ["assert_checked", "assert_no_leaks", "machine", "quiet_machine", "resident"]


@contextmanager
def quiet_machine(arch: str = "x86", strategy: str = "spf", cpus: int = 2,
                  memory: str | int = "64M") -> Iterator[Machine]:
    """A machine that is validated before it is closed, and must leak nothing (InvariantViolation otherwise)."""
    with Machine(arch=arch, strategy=strategy, cpus=cpus, memory=memory) as made:
        yield made
        made.validate()


def assert_checked(report: CheckReport, *, complete: bool = True) -> None:
    """Fail with the whole report, trace and replay token included, where a search has found a violation.

    `complete`: a search that has not seen every schedule (or every one up to the bound asked for) fails, too.
    """
    if not report.ok:
        pytest.fail(str(report), pytrace=False)
    if complete and not (report.complete or report.bounded_complete):
        pytest.fail(f"{report.title}: {report.footer}", pytrace=False)


@contextmanager
def assert_no_leaks(machine: Machine) -> Iterator[None]:
    """Frames that are in use after the block must be those that were in use before it.

    Address spaces made in the block must have exited and files been closed. AssertionError says how many frames stayed.
    """
    machine.validate()
    before = machine.vmstat["nr_used_frames"]
    yield
    machine.validate()
    after = machine.vmstat["nr_used_frames"]
    if after != before:
        raise AssertionError(f"{after - before} frames more in use than before")


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    """A function that makes machines (arguments as Machine); at the end each is validated and closed."""
    made: list[Machine] = []

    def make(arch: str = "x86", strategy: str = "spf", cpus: int = 2, memory: str | int = "64M",
             fault_around: str | int = "64K") -> Machine:
        made.append(Machine(arch=arch, strategy=strategy, cpus=cpus, memory=memory, fault_around=fault_around))
        return made[-1]

    yield make
    for one in made:
        if not one.closed:
            one.validate()
            one.close()


def resident(mm: MmStruct, addr: int, length: int) -> int:
    """How many pages of the range are resident."""
    return sum(byte & 1 for byte in mm.mincore(addr, length))
