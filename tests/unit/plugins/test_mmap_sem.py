# SPDX-License-Identifier: GPL-2.0-only
"""plugins/strategies/_mmap_sem and mm/fault: the classic fault entry."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from arch_under_test import PAGE, frames, make_arch

from pykmm import SegmentationFault
from pykmm_ext.binding import Machine, MmStruct
from pykmm_plugins.strategies import mmap_sem
from pykmm_plugins.strategies._mmap_sem import MmapSem

R, W = 1, 2
PRIVATE, FIXED, ANON, GROWSDOWN = 2, 0x10, 0x20, 0x100
BASE = 0x7000_0000_0000


@pytest.fixture
def m() -> Iterator[Machine]:
    with Machine(make_arch(), MmapSem(), cpus=2, memory=frames(64 << 20)) as machine:
        yield machine
        machine.validate()


def test_registration() -> None:
    class Registry(dict[str, Any]):
        def add(self, name: str, factory: Any, description: str, options: dict[str, tuple[str, ...]]) -> None:
            assert options == {"munmap": ("write", "downgrade")}
            self[name] = factory

    registry = Registry()
    mmap_sem.pykmm_register_strategies(registry)
    assert isinstance(registry["mmap_sem"](), MmapSem)
    assert repr(registry["mmap_sem"]()) == "<MmapSem 'mmap_sem'>"
    assert registry["mmap_sem"](munmap="downgrade").name == "mmap_sem[munmap=downgrade]"
    with pytest.raises(ValueError, match="mmap_sem: munmap is write or downgrade, not 'read'"):
        registry["mmap_sem"](munmap="read")


def test_every_fault_is_counted_once(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 10 * PAGE, R | W, PRIVATE | ANON)
    mm.touch(a, 10 * PAGE, "w")
    with pytest.raises(SegmentationFault):
        mm.load(a + 10 * PAGE, 1)
    assert m.counters == {"attempts": 11, "successes": 10, "retried": 0, "errors": 1}
    assert m.vmstat["fault_mmap_sem"] == 11
    assert m.vmstat["pgfault"] == 11


def test_stack_grows_down_to_the_access(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED | GROWSDOWN)
    mm.store(a - 3 * PAGE + 5, b"deep")
    assert mm.vmas[0].start == a - 3 * PAGE
    assert mm.load(a - 3 * PAGE + 5, 4) == b"deep"
    assert mm.stats["total_vm"] == 5
    assert mm.stats["anon_rss"] == 1


def test_a_stack_keeps_its_guard_gap(mm: MmStruct) -> None:
    stack = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED | GROWSDOWN)
    mm.mmap(BASE - 300 * PAGE, PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(stack - 20 * PAGE, b"x")
    with pytest.raises(SegmentationFault) as excinfo:
        mm.store(stack - 290 * PAGE, b"x")
    assert excinfo.value.code == "MAPERR"
