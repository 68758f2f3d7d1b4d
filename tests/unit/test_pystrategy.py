# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python: members, classes that cannot work, exceptions, and results that make no sense."""
from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from made_strategies import PRIVATE_ANON, RW, Fallback, Full, Plain, bad_fault, make, mapped, used
from python_strategies import PythonSpf

import pykmm
from pykmm import kernel
from pykmm.strategy import MEMBERS

MADV_DONTNEED = 4


@pytest.mark.parametrize("strategy", [Plain, Full])
def test_it_runs(strategy: type[pykmm.PythonStrategy]) -> None:
    made = strategy()
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        used(machine)
        used(machine, cpu=1)
        counters = machine.counters
    assert counters["attempts"] == counters["successes"] + counters["retried"] == counters["seen"] > 0
    assert counters["retried"] == counters["none"] == 0


def test_every_member_is_called() -> None:
    made = Full()
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        used(machine)
    elsewhere = {"pte_map_lock", "pte_spinlock", "gup_fast", "filemap_fault", "mmap_write_downgrade"}
    assert set(made.log) == set(MEMBERS) - {"handle_fault"} - elsewhere     # they have tests of their own
    for first, second in (("mmap_write_lock", "mmap_write_unlock"), ("vma_write_begin", "vma_write_end"),
                          ("tree_write_begin", "tree_write_end"), ("mm_init", "mm_exit"), ("vma_init", "free_vma")):
        assert made.log.count(first) == made.log.count(second) > 0


def test_name_description_counters() -> None:
    made = Plain()
    assert (made.name, made.description) == ("plain", "Every fault under mmap_sem, by hand.")
    assert made.counter_names == ("attempts", "successes", "retried", "seen", "none")
    assert type("Sub", (Plain,), {})().description == "a strategy in Python"
    assert type("Sub", (Plain,), {"description": "text"})().description == "text"


def test_a_strategy_is_collected() -> None:
    made = Full()
    gone = weakref.ref(made) if hasattr(made, "__weakref__") else None
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        used(machine)
    del machine, made
    gc.collect()
    assert gone is None or gone() is None


def test_threads() -> None:
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x40000, prot="rw")
    for number in range(3):
        thread = tape.thread()
        for page in range(64):
            thread.store(a + page * 0x1000 + number, b"x")
        thread.madvise(a + number * 0x4000, 0x4000, MADV_DONTNEED)
        thread.munmap(a + 0x30000 + number * 0x1000, 0x1000)
    with pykmm.Machine(strategy=Plain(), cpus=3, memory="16M") as machine:
        result = machine.run(tape)
        machine.validate()
    assert result.counters["seen"] == result.faults


def test_python_threads_share_a_machine() -> None:
    with pykmm.Machine(strategy=Plain(), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x100000, RW, PRIVATE_ANON)
        threads = [threading.Thread(target=mm.touch, args=(a, 0x100000, "w"), kwargs={"cpu": cpu}) for cpu in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        machine.validate()
        assert mm.stats["anon_rss"] == 256


# ---- classes that cannot work ----

@pytest.mark.parametrize(("members", "message"), [
    ({"name": 3}, "name must be a string"),
    ({"name": ""}, "name must be a string"),
    ({"handle_fault": None}, "defines no handle_fault"),
    ({"handle_fault": staticmethod(len)}, "handle_fault is a staticmethod"),
    ({"vma_init": 3}, "vma_init is a int"),
    ({"vma_write_begin": Full.vma_write_begin}, "defines vma_write_begin and not vma_write_end"),
    ({"mmap_write_unlock": Full.mmap_write_unlock}, "defines mmap_write_unlock and not mmap_write_lock"),
    ({"free_vma": kernel.spf_quiesce}, "free_vma = spf_quiesce: that function is a quiesce"),
    ({"handle_fault": kernel.handle_fault_mmap_sem}, "that function is none of the table's"),
    ({"pte_map_lock": lambda self, cpu, vmf: False}, "defines pte_map_lock and not pte_spinlock"),
    ({"filemap_fault": lambda self, cpu, vmf: 0}, "defines filemap_fault and not pte_map_lock, without which"),
    ({"mmap_write_downgrade": lambda self, cpu, mm: None}, "defines mmap_write_downgrade and not mmap_write_lock"),
    ({"gup_fast": kernel.spf_free_vma}, "gup_fast = spf_free_vma: that function is a free_vma"),
    ({"vma_typesafe": 1}, "vma_typesafe must be True or False, not 1"),
    ({"munmap_downgrade": None}, "munmap_downgrade must be True or False, not None"),
    ({"handle_fault": lambda self, cpu, mm: 0}, r"handle_fault\(self, cpu, mm\): it has to take \(self, cpu, mm, ad"),
    ({"vma_init": lambda self: None}, r"vma_init\(self\): it has to take \(self, cpu, vma\)"),
    ({"name": "a\nb"}, "string of printable characters, not 'a"),
    ({"name": "a\0b"}, "string of printable characters"),
    ({"name": "\ud800"}, "string of printable characters"),
    ({"counters": ("a\0b",)}, "counters must be a tuple"),
    ({"counters": 3}, "counters must be a tuple"),
    ({"counters": {"a": 1}}, "counters must be a tuple"),
    ({"counters": "abc"}, "counters must be a tuple"),
    ({"counters": ("retried",)}, "twice"),
    ({"counters": tuple("x" * n for n in range(1, 40))}, "room for 29 counters"),
])
def test_impossible_classes(members: dict[str, Any], message: str) -> None:
    with pytest.raises(pykmm.PluginError, match=message):
        make(Plain, **members)


@pytest.mark.parametrize(("member", "meant"), [
    ("gup_fst", "gup_fast"), ("mmap_write_lok", "mmap_write_lock"), ("queisce", "quiesce"), ("free_vmas", "free_vma"),
    ("vma_typsafe", "vma_typesafe"), ("mmap_write_unlock_", "mmap_write_unlock"),
    ("munmap_downgraded", "munmap_downgrade"),
])
def test_misspelt_members(member: str, meant: str) -> None:
    with pytest.warns(UserWarning, match=f"strategy 'made' defines {member}, which nothing calls; is it {meant}\\?"):
        make(Plain, **{member: None})


@pytest.mark.parametrize("member", ["vma_start_read", "faults", "lock", "handle", "page", "_gup_fast", "init_vma"])
def test_members_of_the_strategys_own(member: str) -> None:
    make(Plain, **{member: None})       # a warning would be an error


def test_a_helper_beside_the_member_that_it_is_called_after() -> None:
    make(Full, free_vmas=None)


def test_a_class_without_a_name() -> None:
    with pytest.raises(pykmm.PluginError, match="Nameless has no name"):
        type("Nameless", (pykmm.PythonStrategy,), {"handle_fault": Plain.handle_fault})()


async def coroutine(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> int:
    await asyncio.sleep(0)
    return 0


def generator(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Iterator[int]:
    yield 0


@pytest.mark.parametrize("method", [coroutine, generator])
def test_methods_that_would_not_run(method: Any) -> None:
    with pytest.raises(pykmm.PluginError, match=r"handle_fault\(\) is a coroutine or a generator"):
        make(Fallback, handle_fault=method)


def test_a_strategy_is_not_copied() -> None:
    made = PythonSpf()
    for function in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="PythonSpf"):
            function(made)


def test_a_strategy_whose_init_was_not_called() -> None:
    made = PythonSpf.__new__(PythonSpf)
    made.__init__()     # nothing in there
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")


def test_a_class_in_place_of_an_object() -> None:
    with pytest.raises(TypeError, match=r"must be a name or an object; Fallback is a class: give Fallback\(\)"):
        pykmm.Machine(strategy=Fallback)  # type: ignore[arg-type]
    for wrong in (None, 5):
        with pytest.raises(TypeError, match=f"strategy must be a name or a Strategy, not {wrong}"):
            pykmm.Machine(strategy=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"arch must be a name or an Arch, not {wrong}"):
            pykmm.Machine(arch=wrong)  # type: ignore[arg-type]
    for strategy in (Fallback, Fallback()):
        with pytest.raises(TypeError, match=r"strategy must be a name, not .*; to give one: .*strategies.add"):
            pykmm.check(pykmm.Tape(), strategy=strategy)  # type: ignore[arg-type]


def test_methods_that_are_exchanged_later() -> None:
    """The table has what the class had when the object was made."""
    made = make(Fallback)
    type(made).handle_fault = None
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
        machine.validate()


# ---- exceptions ----

def test_an_exception_in_a_fault_reaches_the_caller_and_nothing_is_broken() -> None:
    with pykmm.Machine(strategy=make(Plain, handle_fault=bad_fault), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        for _ in range(2):
            with pytest.raises(ValueError, match="no writes today") as caught:
                mm.store(a, b"x", cpu=1)
        assert "bad_fault" in [entry.name for entry in caught.traceback]
        assert caught.value.__notes__ == ["in handle_fault() of strategy 'made' on CPU 1"]
        assert mm.load(a, 1) == b"\0"           # whatever the callback held is free again
        mm.munmap(a, 0x4000)
        machine.validate()


def test_an_exception_ends_a_run() -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        if cpu.id == 1:
            raise KeyError("the second")
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x41000, prot="rw")
    first, second = tape.thread(), tape.thread()
    second.store(a + 0x40000, b"x")
    for page in range(64):
        first.store(a + page * 0x1000, b"x")
    with pykmm.Machine(strategy=make(Plain, handle_fault=handle_fault), memory="16M") as machine:
        with pytest.raises(KeyError, match="the second"):
            machine.run(tape)
        machine.validate()
        used(machine)                           # Cpu 0 only


@pytest.mark.parametrize("member", ["mmap_write_lock", "mmap_write_unlock", "vma_write_begin", "vma_write_end",
                                    "tree_write_begin", "tree_write_end", "free_vma", "vma_init"])
def test_an_exception_of_a_writer_poisons_the_machine(member: str) -> None:
    armed = False

    def bad(self: Any, *args: Any) -> Any:
        if armed:
            raise ValueError("bad writer")
        return getattr(Full, member)(self, *args)

    made = type("Bad", (Full,), {"name": "bad", member: bad})()
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x8000, RW, PRIVATE_ANON)
        mm.store(a, b"x")
        armed = True
        with pytest.raises(ValueError, match="bad writer") as caught:
            mm.munmap(a + 0x1000, 0x1000)
        assert caught.value.__notes__ == [f"in {member}() of strategy 'bad' on CPU 0",
                                          "the machine is poisoned: it can only be closed"]
        for use in (lambda: mm.load(a, 1), machine.mm, mm.proc_maps, machine.validate):
            with pytest.raises(pykmm.PluginError, match=rf"can only be closed: .*bad writer; in {member}\(\)"):
                use()


def test_an_exception_of_mm_init() -> None:
    def bad(self: Any, cpu: Any, mm: Any) -> int:
        raise ValueError("no more address spaces")

    with pykmm.Machine(strategy=make(Plain, mm_init=bad), memory="16M") as machine:
        with pytest.raises(ValueError, match="no more address spaces"):
            machine.mm()
        machine.validate()
    with (pykmm.Machine(strategy=make(Plain, mm_init=lambda self, cpu, mm: -12), memory="16M") as machine,
          pytest.raises(MemoryError)):
        machine.mm()


# ---- nonsense ----

def returning(value: Any) -> pykmm.PythonStrategy:
    return make(Plain, handle_fault=lambda self, cpu, mm, address, flags: value)


@pytest.mark.parametrize(("value", "message"), [
    (None, r"'made': handle_fault\(\) returned None; it has to return an int"),
    (True, r"returned True"),
    ("0", r"returned '0'"),
    (0x8000, r"returned 0x8000, which has bits that are no VM_FAULT_"),
    (-14, r"returned -0xe"),
    (0x400, r"returned VM_FAULT_RETRY: .*fall back to handle_fault_mmap_sem"),
    (0, r"'made': handle_fault on CPU 0, address 0x[0-9a-f]+, said 100000 times in a row"),
])
def test_nonsense(value: Any, message: str) -> None:
    with pykmm.Machine(strategy=returning(value), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(pykmm.PluginError, match=message):
            mm.load(a, 1)
        machine.validate()


def test_nonsense_of_writers() -> None:
    with pykmm.Machine(strategy=make(Plain, vma_init=lambda self, cpu, vma: 1), memory="16M") as machine:
        mm = machine.mm()
        with pytest.raises(pykmm.PluginError, match=r"vma_init\(\) returned 1; it has to return None"):
            mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
    with pykmm.Machine(strategy=make(Plain, free_vma=lambda self, cpu, vma: None), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(pykmm.PluginError, match="without having freed the VMA"):
            mm.munmap(a, 0x4000)
