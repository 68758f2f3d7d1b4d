# SPDX-License-Identifier: GPL-2.0-only
"""machine/region and machine/snapshot: a machine that is copied back, what its shadow says, and what its parts are
called."""
from __future__ import annotations

import pathlib

import pytest
from arch_under_test import ARCH, LEVELS, PAGE, frames

import pykmm
from pykmm_ext.machine.snapshot_test import CheckedMachine

ADDRESS = 0x2000_0000


def build(strategy: str = "spf", cpus: int = 2, memory: int = frames("64M")) -> CheckedMachine:
    with pykmm.Machine(arch=ARCH, strategy=strategy, cpus=1, memory=frames("16M")) as machine:
        return CheckedMachine(machine.arch_object, machine.strategy_object, cpus, memory)


@pytest.fixture
def machine() -> CheckedMachine:
    return build()


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "spf-2021", "per_vma_lock-refcount"])
@pytest.mark.parametrize("cpus", [1, 2, 40])
def test_restore(strategy: str, cpus: int) -> None:
    """Whatever ran: every byte is as it was, and every structure in order."""
    machine = build(strategy, cpus)
    machine.run(1, 100)
    assert machine.validate() is None
    size = machine.snapshot()
    assert machine.restored
    for seed in range(20):
        machine.run(seed, 200)
        assert machine.validate() is None
        assert not machine.restored
        machine.restore()
        assert machine.restored
        assert machine.validate() is None
    assert machine.snapshot() == size
    assert not any(machine.close_all().values())
    assert machine.validate() is None


def test_every_execution_is_the_same(machine: CheckedMachine) -> None:
    """Nothing that one execution leaves behind changes the next: not even memory that is handed out uncleared."""
    machine.run(1, 50)
    machine.snapshot()
    digests = set()
    for _ in range(3):
        machine.restore()
        machine.run(2, 300)
        digests.add(machine.digest())
        machine.restore()
        machine.run(3, 300)
    assert len(digests) == 1
    machine.restore()
    machine.run(4, 300)
    assert machine.digest() not in digests


def test_a_typesafe_object_is_never_freed() -> None:
    """A reader without a lock may look at it for ever: also at those that no magazine has room for."""
    machine = build("per_vma_lock-refcount")
    made = [machine.allocate() for _ in range(200)]
    for obj, pfn in made:
        machine.release(obj, pfn)
    assert {machine.state(obj) for obj, _ in made} == {"live"}
    assert machine.validate() is None
    again = [machine.allocate() for _ in range(200)]
    assert len({obj for obj, _ in again} & {obj for obj, _ in made}) == 61, "a magazine of them is used again"
    for obj, pfn in again:
        machine.release(obj, pfn)
    assert machine.validate() is None
    assert not any(machine.close_all().values())


def test_abandoned(machine: CheckedMachine) -> None:
    """Locks held, IRQs off, a write section open, objects lost: all gone."""
    machine.snapshot()
    machine.abandon()
    machine.restore()
    assert machine.restored
    machine.run(5, 200)
    assert machine.validate() is None
    assert not any(machine.close_all().values())


def test_destroyed_in_the_middle() -> None:
    machine = build()
    machine.abandon()
    del machine     # waits for nobody, and frees everything


def resident() -> int:
    """Bytes of this process that the host backs."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_ten_thousand_rounds_leak_nothing(machine: CheckedMachine) -> None:
    machine.run(1, 40)
    machine.snapshot()
    machine.rounds(2000, 20, seed=1)
    before = resident()
    machine.rounds(10_000, 20, seed=1)
    assert machine.restored
    assert machine.validate() is None
    assert resident() - before < 1 << 20


def test_restore_without_snapshot(machine: CheckedMachine) -> None:
    before = machine.digest()
    machine.restore()
    assert machine.digest() == before
    assert not machine.restored


def test_second_snapshot(machine: CheckedMachine) -> None:
    machine.snapshot()
    machine.run(1, 50)
    machine.snapshot()
    digest = machine.digest()
    machine.run(2, 50)
    machine.restore()
    assert machine.digest() == digest


def test_quarantine(machine: CheckedMachine) -> None:
    """What was freed is poisoned and not handed out again before the next restore; then it is, at the same place."""
    machine.snapshot()
    obj, pfn = machine.allocate()
    frame = machine.place("frame", pfn)
    assert machine.state(obj) == machine.state(frame) == "live"
    machine.release(obj, pfn)
    assert machine.state(obj) == machine.state(obj + 100) == machine.state(frame) == "freed"
    assert machine.read(obj, 64) == b"\x6b" * 64
    assert machine.read(frame, PAGE) == b"\x6b" * PAGE
    others = [machine.allocate() for _ in range(100)]
    assert obj not in [other for other, _ in others]
    assert pfn not in [other for _, other in others]
    assert machine.state(obj) == machine.state(frame) == "freed"
    machine.restore()
    assert machine.state(obj) == machine.state(frame) == "never"
    assert machine.allocate() == (obj, pfn)


def test_fresh_memory(machine: CheckedMachine) -> None:
    """Cleared where that was asked for; else the same bytes in every execution, and none that look cleared."""
    machine.snapshot()
    obj, pfn = machine.allocate(zero=False)
    frame = machine.place("frame", pfn)
    for zero, byte in (True, b"\0"), (False, b"\x5a"):
        machine.release(obj, pfn)       # leaves poison
        machine.restore()
        assert machine.allocate(zero=zero) == (obj, pfn)
        assert machine.read(frame, PAGE) == byte * PAGE
        assert machine.read(obj, 64) == bytes(64)


def test_addresses_do_not_depend_on_the_other_cpus(machine: CheckedMachine) -> None:
    machine.snapshot()
    alone = [machine.allocate(cpu=1) for _ in range(5)]
    machine.restore()
    among = []
    for i in range(5):
        for _ in range(i):
            machine.allocate(cpu=0)
        among.append(machine.allocate(cpu=1))
    assert among == alone


def test_out_of_room() -> None:
    """Frames run out as memory does; the engine can tell."""
    machine = build(cpus=2, memory=256 * PAGE)
    machine.snapshot()
    assert machine.exhausted == 0
    pfns = [machine.allocate()[1] for _ in range(200)]
    assert 0 < sum(pfn != 0 for pfn in pfns) < 128
    assert pfns[-1] == 0
    assert machine.exhausted == pfns.count(0)
    assert machine.allocate(cpu=1)[1] != 0
    machine.restore()
    assert machine.exhausted == 0
    assert machine.allocate()[1] == pfns[0]


@pytest.mark.parametrize(("what", "message"), [
    ("frame", "frame was written to after it was freed: frame "),
    ("object", "the cache's objects do not add up: cache vm_area_struct"),
    ("lost frame", "frame is neither free nor owned: frame "),
])
def test_damage_is_found(machine: CheckedMachine, what: str, message: str) -> None:
    machine.snapshot()
    machine.damage(what)
    found = machine.validate()
    assert found is not None
    assert found.startswith(message)
    machine.restore()
    assert machine.validate() is None


@pytest.mark.parametrize(("what", "message"), [
    ("object twice", "an object was freed twice"),
    ("inside an object", "an object was freed twice"),
    ("frame twice", "reference dropped on a free page"),
    ("mapped frame", "freed while mapped"),
    ("nothing", None),
])
def test_broken_frees_are_reported(machine: CheckedMachine, what: str, message: str | None) -> None:
    machine.snapshot()
    assert machine.provoke(what) == message
    machine.restore()
    assert machine.validate() is None


def test_states(machine: CheckedMachine) -> None:
    """Every address of a live machine may be touched, and what munmap frees may not."""
    machine.mmap(ADDRESS, 2 * PAGE)
    for what in "vma", "table", "data", "ptl":
        assert machine.state(machine.place(what, ADDRESS)) == "live"
    for what in "mm", "cpu", "tlb", "machine", "zone", "srcu", "pgd", "file name":
        assert machine.state(machine.place(what)) == "live"
    places = {what: machine.place(what, ADDRESS) for what in ("vma", "table", "data", "ptl")}
    machine.munmap(ADDRESS, 2 * PAGE)
    assert {what: machine.state(place) for what, place in places.items()} == dict.fromkeys(places, "freed")
    # mem_map itself stays: get_page_unless_zero() of a frame that is free is in order.
    assert machine.state(places["ptl"] & ~7) == "live" or places["ptl"] & 7 == 0
    assert machine.state(machine.place("page", 3)) == "live"
    assert machine.state(machine.place("frame", 1)) == "live"
    assert machine.state(machine.place("frame", 0)) == "never"
    assert machine.state(machine.place("machine") - 1) == "never"
    assert machine.state(id(machine)) == "foreign"


def test_names(machine: CheckedMachine) -> None:
    machine.mmap(ADDRESS, PAGE)

    def name(what: str, address: int = ADDRESS, at: int = 0) -> str:
        text, offset, member = machine.name(machine.place(what, address) + at)
        return f"{text}+{offset:#x} {member}"

    assert name("vma", at=8).startswith("vm_area_struct 0.")
    assert name("vma", at=8).endswith("+0x8 vm_end")
    assert name("mm").startswith("mm_struct 0.")
    assert name("mm").endswith("+0x0 mmap")
    assert name("cpu", 1) == "Cpu 1+0x0 None"
    assert name("tlb", 1, at=4) == "TLB 1+0x4 None"
    assert name("machine") == "machine+0x0 None"
    assert name("zone") == "zone+0x0 lock"
    assert name("srcu") == "vma_srcu+0x0 None"
    assert name("page", 7, at=8) == "page 7+0x8 _refcount"
    assert name("ptl").endswith(" ptl")
    assert name("frame", 1) == "frame 1 (zero page)+0x0 None"
    assert name("frame", 9999, at=5) == "frame 9999 (never handed out)+0x5 None"
    assert f"(page table level {LEVELS - 1} of mm 1)+0x8" in name("pgd", at=8)
    assert "(page table level 0 of mm 1)+0x18" in name("table", at=0x18)
    assert f"(anonymous page, index {ADDRESS // PAGE:#x})+0x0" in name("data")
    assert name("file name").startswith("file_name 0.")
    assert name("file name", at=15).endswith("+0xf None")
    places = {what: machine.place(what, ADDRESS) for what in ("vma", "table", "data")}
    machine.munmap(ADDRESS, PAGE)
    assert machine.name(places["vma"])[0].endswith(", freed")
    assert machine.name(places["table"])[0].endswith(" (page table level 0 of mm 1, freed)")
    assert machine.name(places["data"])[0].endswith(f" (anonymous page, index {ADDRESS // PAGE:#x}, freed)")
    assert machine.name(12345) == ("?", 12345, None)


def test_cpus_are_limited() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        build(cpus=65)
    with pytest.raises(OSError, match="Invalid argument"):
        build(memory=PAGE)
