# SPDX-License-Identifier: GPL-2.0-only
"""Tests of mm/page_alloc: buddy lists, per-CPU lists, reference counts."""
from __future__ import annotations

import pathlib
import random
import subprocess
import sys
import threading

import pytest
from arch_under_test import PAGE, make_arch
from hypothesis import given, settings
from hypothesis import strategies as st

from pykmm_ext.machine.machine_test import Rig
from pykmm_ext.machine.machine_torture import page_stress, ref_stress

FRAMES = 256


def make(cpus: int = 1, memory: int = FRAMES * PAGE) -> Rig:
    return Rig(make_arch(), cpus, memory)


def finish(rig: Rig) -> None:
    rig.validate()
    assert rig.used() == 0
    assert rig.destroy() == {"mms": 0, "vmas": 0, "anon_vmas": 0, "avcs": 0, "files": 0, "frames": 0}


def test_new_machine_has_all_frames_but_two() -> None:
    rig = make()
    zone = rig.zone
    assert zone["nr_frames"] == FRAMES
    assert zone["nr_free_pages"] == FRAMES - 2  # pfn 0 and the zero page
    assert zone["zero_page"] == 1
    assert rig.refcount(1) == 1
    assert rig.read(PAGE, PAGE) == bytes(PAGE)
    finish(rig)


def test_every_frame_can_be_had_once_and_again() -> None:
    rig = make()
    for _ in range(2):
        frames = []
        while (pfn := rig.alloc()) is not None:
            frames.append(pfn)
        assert sorted(frames) == list(range(2, FRAMES))
        assert rig.used() == FRAMES - 2
        rig.validate()
        random.Random(1).shuffle(frames)
        for pfn in frames:
            rig.put(pfn)
        rig.validate()
    rig.drain()
    # Everything has merged back: the blocks are the fewest that alignment allows for frames 2 to 255.
    assert rig.zone["nr_free"] == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    finish(rig)


def test_freed_frame_comes_back_first() -> None:
    rig = make()
    frames = [rig.alloc() for _ in range(10)]
    rig.put(frames[3])
    rig.put(frames[7])
    assert rig.alloc() == frames[7]
    assert rig.alloc() == frames[3]
    for pfn in frames:
        rig.put(pfn)
    finish(rig)


def test_fresh_frames_come_in_address_order() -> None:
    rig = make()
    frames = [rig.alloc() for _ in range(100)]
    assert frames == list(range(2, 102))
    for pfn in frames:
        rig.put(pfn)
    finish(rig)


@pytest.mark.parametrize("commit", [0, FRAMES])
def test_zeroed_frames_are_zero(commit: int) -> None:
    rig = make()
    rig.commit(commit)
    for _ in range(3):
        frames = []
        while (pfn := rig.alloc(zero=True)) is not None:
            assert rig.read(pfn * PAGE, PAGE) == bytes(PAGE), pfn
            rig.write(pfn * PAGE, b"\xff" * PAGE)
            frames.append(pfn)
        assert len(frames) == FRAMES - 2
        for pfn in frames:
            rig.put(pfn)
        if commit:
            rig.drain()
    finish(rig)


def test_only_frames_that_the_host_never_backed_count_as_pristine() -> None:
    """A frame that was committed pays for its zeroing in the fault that takes it."""
    pristine = 1 << 9
    rig = make()
    rig.alloc()  # fills the per-CPU list
    assert rig.flags(3) == pristine
    rig.put(2)
    assert rig.flags(2) == 0
    rig = make()
    rig.commit(10)
    rig.alloc()
    assert [rig.flags(pfn) for pfn in range(3, 14)] == [0] * 9 + [pristine] * 2


def test_a_frame_that_comes_back_unwritten_is_not_cleared_again() -> None:
    rig = make()
    rig.commit(FRAMES)
    pfn = rig.alloc(zero=True)
    rig.put_zeroed(pfn)
    rig.write(pfn * PAGE, b"x")             # as nobody may: shows that nothing clears it
    assert rig.alloc(zero=True) == pfn
    assert rig.read(pfn * PAGE, 2) == b"x\0"
    rig.put(pfn)
    assert rig.alloc(zero=True) == pfn      # an ordinary one is
    assert rig.read(pfn * PAGE, 2) == b"\0\0"
    rig.get(pfn)                            # somebody else's reference: it is theirs to give back
    rig.put_zeroed(pfn)
    assert rig.refcount(pfn) == 1
    rig.put(pfn)
    assert rig.alloc() == pfn
    rig.put(pfn)
    finish(rig)


def test_block_is_zeroed_as_a_whole() -> None:
    rig = make()
    pfn = rig.alloc(order=3)
    rig.write(pfn * PAGE, b"\xff" * PAGE * 8)
    rig.free_pages(pfn, 3)
    assert rig.alloc(order=3, zero=True) == pfn
    assert rig.read(pfn * PAGE, PAGE * 8) == bytes(PAGE * 8)
    rig.free_pages(pfn, 3)
    finish(rig)


def test_references_keep_a_frame() -> None:
    rig = make()
    pfn = rig.alloc()
    rig.get(pfn)
    rig.put(pfn)
    assert rig.refcount(pfn) == 1
    assert rig.used() == 1
    rig.put(pfn)
    assert rig.used() == 0
    finish(rig)


def test_zero_page_is_never_freed() -> None:
    rig = make()
    for _ in range(5):
        rig.put(1)
    assert rig.refcount(1) == 1
    finish(rig)


@pytest.mark.parametrize("order", [11, 12, 2**31])
def test_absurd_order_is_out_of_memory(order: int) -> None:
    rig = make()
    assert rig.alloc(order=order) is None
    finish(rig)


def test_small_machine_is_not_hoarded_by_one_cpu() -> None:
    rig = make(cpus=4, memory=32 * PAGE)
    assert rig.zone["pcp_batch"] <= rig.zone["pcp_high"] <= 2
    first = rig.alloc(cpu=0)
    others = [rig.alloc(cpu=cpu) for cpu in (1, 2, 3)]
    assert None not in others
    rig.put(first)
    for cpu, pfn in enumerate(others, 1):
        rig.put(pfn, cpu=cpu)
    finish(rig)


def test_per_cpu_list_gives_back_above_its_limit() -> None:
    rig = make(memory=4096 * PAGE)
    high, batch = rig.zone["pcp_high"], rig.zone["pcp_batch"]
    assert (high, batch) == (1024, 64)
    frames = [rig.alloc() for _ in range(3000)]
    for pfn in frames:
        rig.put(pfn)
        assert rig.pcp_count() <= high
    rig.drain()
    assert rig.pcp_count() == 0
    finish(rig)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 5), st.integers(0, 2**30)),
                max_size=200))
@settings(max_examples=60, deadline=None)
def test_against_a_model(steps: list[tuple[int, int, int, int]]) -> None:
    """Any sequence of allocations and frees on two Cpus hands out disjoint, aligned blocks and loses none."""
    rig = make(cpus=2)
    held: list[tuple[int, int]] = []
    for what, cpu, order, pick in steps:
        if what == 0 or not held:
            order = order if what == 0 else 0
            pfn = rig.alloc(cpu, order)
            if pfn is None:
                continue
            assert pfn % (1 << order) == 0
            mine = range(pfn, pfn + (1 << order))
            assert pfn >= 2 and mine[-1] < FRAMES
            for other, size in held:
                assert mine[-1] < other or other + (1 << size) <= pfn
            held.append((pfn, order))
        elif what == 1:
            pfn, order = held.pop(pick % len(held))
            rig.free_pages(pfn, order, cpu)
        else:
            rig.drain(cpu)
        assert rig.used() == sum(1 << order for _, order in held)
    rig.validate()
    for pfn, order in held:
        rig.free_pages(pfn, order)
    finish(rig)


def test_two_threads_share_a_zone() -> None:
    rig = make(cpus=2, memory=1024 * PAGE)
    bad: list[int] = []
    threads = [threading.Thread(target=lambda cpu=cpu: bad.append(page_stress(rig, cpu, 77 + cpu, 200_000)))
               for cpu in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bad == [0, 0]
    finish(rig)


def test_reference_counts_are_atomic() -> None:
    rig = make(cpus=2)
    pfn = rig.alloc()
    threads = [threading.Thread(target=ref_stress, args=(rig, cpu, pfn, 300_000)) for cpu in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rig.refcount(pfn) == 1
    rig.put(pfn)
    finish(rig)


LIB = str(pathlib.Path(__file__).parents[2] / "lib")
CRASHES = {
    "a page that is dropped twice": ("rig.put(pfn); rig.put(pfn)", "reference dropped on a free page"),
    "a mapped page": ("rig.set_mapcount(pfn, 1); rig.put(pfn)", "freed while mapped"),
    "a block dropped twice": ("b = rig.alloc(order=2); rig.free_pages(b, 2); rig.free_pages(b, 2)",
                              "reference dropped on a free page"),
    "a block with the wrong order": ("b = rig.alloc(order=2); rig.free_pages(b, 3)", "another order"),
    "a block through put_page": ("b = rig.alloc(order=2); rig.put(b)", "block of more than one page"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_bad_free_stops_the_process_with_a_message(name: str) -> None:
    code, message = CRASHES[name]
    program = ("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
               f"import sys; sys.path.insert(0, {LIB!r})\n"
               "from arch_under_test import frames, make_arch\n"
               "from pykmm_ext.machine.machine_test import Rig\n"
               f"rig = Rig(make_arch(), 1, frames(1 << 20)); pfn = rig.alloc(); {code}\n")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == -6, result
    assert "pykmm: BUG" in result.stderr and message in result.stderr


def test_validate_zone_finds_damage() -> None:
    rig = make()
    frames = [rig.alloc() for _ in range(4)]
    rig.put(frames[0])
    rig.set_flags(frames[1], 1 << 7)
    with pytest.raises(AssertionError, match="PG_buddy on a frame that is in use"):
        rig.validate()
    rig.set_flags(frames[1], 0)
    rig.set_flags(frames[0], 1)
    with pytest.raises(AssertionError, match="per-CPU list"):
        rig.validate()
    rig.set_flags(frames[0], 0)
    rig.validate()
    for pfn in frames[1:]:
        rig.put(pfn)
    finish(rig)
