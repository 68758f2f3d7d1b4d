# SPDX-License-Identifier: GPL-2.0-only
"""Tests of machine/memory: building, committing and tearing down a machine."""
from __future__ import annotations

import errno
import resource

import pytest
from arch_under_test import PAGE, frames, make_arch

from pykmm_ext.machine.machine_test import Rig

NOTHING = {"mms": 0, "vmas": 0, "anon_vmas": 0, "avcs": 0, "files": 0, "frames": 0}


def statm(column: int) -> int:
    """Bytes of the process: column 0 = address space, 1 = resident."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[column]) * resource.getpagesize()


def resident() -> int:
    return statm(1)


@pytest.mark.parametrize(("cpus", "memory"), [
    (0, 32 * PAGE), (4097, 1 << 30), (1, 0), (1, PAGE - 1), (1, 15 * PAGE), (1, 1 << 46), (1, 2**64 - 1),
    (2**32 - 1, 32 * PAGE),
])
def test_absurd_sizes_are_invalid(cpus: int, memory: int) -> None:
    with pytest.raises(OSError) as info:
        Rig(make_arch(), cpus, memory)
    assert info.value.errno == errno.EINVAL


def test_refused_reservation_is_out_of_memory_and_leaks_nothing() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = statm(0)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), hard))
        for _ in range(100):  # leaked reservations of 1 GiB would end this early, in another place
            with pytest.raises(OSError) as info:
                Rig(make_arch(), 1, 8 << 30)
            assert info.value.errno == errno.ENOMEM
        for _ in range(10):
            rig = Rig(make_arch(), 1, 1 << 30)
            assert rig.destroy() == NOTHING
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_address_space_goes_back_to_the_host() -> None:
    Rig(make_arch(), 1, frames(1 << 20)).destroy()
    before = statm(0)
    for _ in range(200):
        assert Rig(make_arch(), 1, frames(1 << 20)).destroy() == NOTHING
    assert statm(0) - before < 32 << 20


def test_smallest_machine() -> None:
    rig = Rig(make_arch(), 1, 16 * PAGE + PAGE - 1)
    assert rig.zone["nr_frames"] == 16
    rig.validate()
    assert rig.destroy() == NOTHING


def test_two_terabytes_cost_nothing_until_used() -> None:
    before = resident()
    rig = Rig(make_arch(), 8, 2 << 40)
    assert rig.zone["nr_free_pages"] == (2 << 40) // PAGE - 2
    some = [rig.alloc() for _ in range(100)]
    assert resident() - before < 64 << 20
    for pfn in some:
        rig.put(pfn)
    rig.validate()
    assert rig.destroy() == NOTHING


def test_most_cpus() -> None:
    rig = Rig(make_arch(), 4096, 1 << 30)
    space = rig.space(0x100000, 0x200000, 3)
    rig.switch(4095, space)
    rig.switch(63, space)
    rig.switch(64, space)
    assert space.cpumask == [63, 64, 4095]
    assert rig.touch(4095, 0x100000, 1) == 0
    for cpu in (63, 64, 4095):
        rig.switch(cpu, None)
    space.free()
    assert rig.destroy() == NOTHING


def test_commit_backs_memory_and_keeps_it_zero() -> None:
    rig = Rig(make_arch(), 1, frames(16 << 20))
    before = resident()
    rig.commit(2048)
    assert resident() - before >= 2048 * PAGE
    zone = rig.zone
    assert zone["committed_pfn"] == zone["pristine_pfn"] + 2048
    rig.commit(100)  # less than there is
    assert rig.zone["committed_pfn"] == zone["committed_pfn"]
    for _ in range(10):
        pfn = rig.alloc()
        assert rig.read(pfn * PAGE, PAGE) == bytes(PAGE)
        rig.put(pfn)
    rig.commit(2**63)  # all there is
    assert rig.zone["committed_pfn"] == rig.zone["end_pfn"]
    rig.validate()
    assert rig.destroy() == NOTHING


def test_commit_of_a_part_loses_no_contents() -> None:
    rig = Rig(make_arch(), 1, frames(16 << 20))
    there = [rig.alloc() for _ in range(300)]
    for pfn in there:
        rig.write(pfn * PAGE, pfn.to_bytes(8, "little") * (PAGE // 8))
    rig.commit(1000)
    for pfn in there:
        assert rig.read(pfn * PAGE, PAGE) == pfn.to_bytes(8, "little") * (PAGE // 8)
        rig.put(pfn)
    rig.validate()
    assert rig.destroy() == NOTHING


def test_destroy_reports_leaked_frames() -> None:
    rig = Rig(make_arch(), 2, frames(1 << 20))
    rig.alloc(cpu=1)
    rig.alloc(cpu=0, order=2)
    assert rig.destroy() == NOTHING | {"frames": 5}


def test_memory_goes_back_to_the_host() -> None:
    for _ in range(3):
        rig = Rig(make_arch(), 1, 256 << 20)
        rig.commit(65536)
        assert rig.destroy() == NOTHING
    before = resident()
    for _ in range(5):
        rig = Rig(make_arch(), 1, 256 << 20)
        rig.commit(65536)
        assert rig.destroy() == NOTHING
    assert resident() - before < 128 << 20
