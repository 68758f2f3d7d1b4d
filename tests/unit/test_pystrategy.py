# SPDX-License-Identifier: GPL-2.0-only
"""pykmm_ext/pystrategy.pyx and pykernel.pyx: strategies in Python, and what happens when they misbehave."""
from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import pykmm
from pykmm import kernel
from pykmm.plugin import get_plugin_manager
from pykmm.strategy import MEMBERS

RW = 3
PRIVATE_ANON = 0x22
MADV_DONTNEED = 4


class Plain(pykmm.PythonStrategy):
    """Every fault under mmap_sem, by hand."""

    name = "plain"
    counters = ("seen", "none")

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.count(cpu, "seen")
        kernel.mmap_read_lock(cpu, mm)
        vma = kernel.find_vma(cpu, mm, address)
        if vma is None or vma.vm_start > address:
            result = kernel.VM_FAULT_SIGSEGV | kernel.VM_FAULT_BADMAP
        elif kernel.access_error(vma.vm_flags, flags):
            result = kernel.VM_FAULT_SIGSEGV | kernel.VM_FAULT_BADACCESS
        else:
            result = kernel.handle_mm_fault(cpu, vma, address, flags)
        kernel.mmap_read_unlock(cpu, mm)
        return result


class Full(Plain):
    """Every member of the writers' side, with a log of the calls."""

    name = "full"

    def __init__(self) -> None:
        self.log: list[str] = []

    def mmap_write_lock(self, cpu: Any, mm: Any, start: int, end: int) -> None:
        assert start <= end
        self.log.append("mmap_write_lock")
        if not kernel.down_write_trylock(cpu, mm):
            kernel.down_write(cpu, mm)

    def mmap_write_unlock(self, cpu: Any, mm: Any) -> None:
        self.log.append("mmap_write_unlock")
        kernel.up_write(cpu, mm)

    def vma_write_begin(self, cpu: Any, vma: Any, subclass: int) -> None:
        self.log.append("vma_write_begin")
        kernel.spf_vma_write_begin(cpu, vma, subclass)
        assert vma.vm_sequence & kernel.SPF_WRITER_MASK

    def vma_write_end(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_write_end")
        kernel.spf_vma_write_end(cpu, vma)

    def tree_write_begin(self, cpu: Any, mm: Any) -> None:
        self.log.append("tree_write_begin")
        kernel.write_seqlock(cpu, mm)

    def tree_write_end(self, cpu: Any, mm: Any) -> None:
        self.log.append("tree_write_end")
        kernel.write_sequnlock(cpu, mm)

    def free_vma(self, cpu: Any, vma: Any) -> None:
        self.log.append("free_vma")
        kernel.vm_area_free_rcu(cpu, vma)

    def vma_init(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_init")
        assert vma.strategy_data == 0
        vma.strategy_data = 7

    def mm_init(self, cpu: Any, mm: Any) -> int:
        self.log.append("mm_init")
        return 0

    def mm_exit(self, cpu: Any, mm: Any) -> None:
        self.log.append("mm_exit")

    def vma_start_write(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_start_write")

    def vma_mark_attached(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_mark_attached")

    def vma_mark_detached(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_mark_detached")

    def quiesce(self, cpu: Any, machine: Any) -> None:
        assert machine.nr_cpus == 2
        kernel.rcu_barrier(cpu, machine)
        self.log.append("quiesce")


def used(machine: pykmm.Machine, cpu: int = 0) -> None:
    """A little of everything."""
    mm = machine.mm()
    a = mm.mmap(0, 0x8000, RW, PRIVATE_ANON)
    mm.store(a, b"hello", cpu=cpu)
    mm.touch(a, 0x8000, "w", cpu=cpu)
    mm.mprotect(a + 0x1000, 0x1000, 1)
    with pytest.raises(pykmm.SegmentationFault, match="ACCERR"):
        mm.store(a + 0x1000, b"x", cpu=cpu)
    mm.munmap(a + 0x3000, 0x1000)
    with pytest.raises(pykmm.SegmentationFault, match="MAPERR"):
        mm.load(a + 0x3000, 1, cpu=cpu)
    child = mm.fork()
    child.store(a, b"child")
    assert mm.load(a, 5, cpu=cpu) == b"hello"
    child.exit()
    machine.validate()
    mm.exit()


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
    assert set(made.log) == set(MEMBERS) - {"handle_fault"} - elsewhere     # test_pystrategy_members.py
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


def make(**members: Any) -> pykmm.PythonStrategy:
    return type("Made", (Plain,), {"name": "made", **members})()


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
        make(**members)


def test_a_class_without_a_name() -> None:
    with pytest.raises(pykmm.PluginError, match="Nameless has no name"):
        type("Nameless", (pykmm.PythonStrategy,), {"handle_fault": Plain.handle_fault})()


# ---- exceptions ----

def bad_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> int:
    kernel.mmap_read_lock(cpu, mm)
    kernel.srcu_read_lock(cpu)
    kernel.rcu_read_lock(cpu)
    if flags & kernel.FAULT_FLAG_WRITE:
        raise ValueError("no writes today")
    kernel.rcu_read_unlock(cpu)
    kernel.srcu_read_unlock(cpu, 0)
    kernel.mmap_read_unlock(cpu, mm)
    return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)


def test_an_exception_in_a_fault_reaches_the_caller_and_nothing_is_broken() -> None:
    with pykmm.Machine(strategy=make(handle_fault=bad_fault), memory="16M") as machine:
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
    with pykmm.Machine(strategy=make(handle_fault=handle_fault), memory="16M") as machine:
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

    with pykmm.Machine(strategy=make(mm_init=bad), memory="16M") as machine:
        with pytest.raises(ValueError, match="no more address spaces"):
            machine.mm()
        machine.validate()
    with (pykmm.Machine(strategy=make(mm_init=lambda self, cpu, mm: -12), memory="16M") as machine,
          pytest.raises(MemoryError)):
        machine.mm()


# ---- nonsense ----

def returning(value: Any) -> pykmm.PythonStrategy:
    return make(handle_fault=lambda self, cpu, mm, address, flags: value)


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
    with pykmm.Machine(strategy=make(vma_init=lambda self, cpu, vma: 1), memory="16M") as machine:
        mm = machine.mm()
        with pytest.raises(pykmm.PluginError, match=r"vma_init\(\) returned 1; it has to return None"):
            mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
    with pykmm.Machine(strategy=make(free_vma=lambda self, cpu, vma: None), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(pykmm.PluginError, match="without having freed the VMA"):
            mm.munmap(a, 0x4000)


# ---- locks that are left over, locks that are not there, handles that are over ----

@pytest.mark.parametrize(("take", "what"), [
    (kernel.mmap_read_lock, "mmap_sem of address space 1 for reading"),
    (kernel.down_write, "mmap_sem of address space 1 for writing"),
    (lambda cpu, mm: kernel.rcu_read_lock(cpu), "an RCU read section"),
    (lambda cpu, mm: kernel.srcu_read_lock(cpu), "an SRCU read section"),
    (kernel.write_seqlock, "mm_seq of address space 1"),
])
def test_a_leaked_lock(take: Any, what: str) -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        result = kernel.handle_fault_mmap_sem(cpu, mm, address, flags)
        take(cpu, mm)
        return result

    with pykmm.Machine(strategy=make(handle_fault=handle_fault), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(pykmm.PluginError, match=rf"handle_fault\(\) returned on CPU 0 and still holds {what}"):
            mm.load(a, 1)
        mm.munmap(a, 0x4000)
        machine.validate()


def test_a_lock_that_a_writer_leaks() -> None:
    def mmap_write_unlock(self: Any, cpu: Any, mm: Any) -> None:
        pass

    made = type("Bad", (Full,), {"name": "bad", "mmap_write_unlock": mmap_write_unlock})()
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm = machine.mm()
        with pytest.raises(pykmm.PluginError, match="mmap_write_unlock.* still holds mmap_sem .* for writing"):
            mm.mmap(0, 0x4000, RW, PRIVATE_ANON)

    def leak(self: Any, cpu: Any, vma: Any) -> None:
        kernel.rcu_read_lock(cpu)

    with pykmm.Machine(strategy=make(vma_start_write=leak), memory="16M") as machine:   # it may last until the unlock
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(pykmm.PluginError, match="left an earlier callback with an RCU read section held"):
            mm.load(a, 1)
    with pykmm.Machine(strategy=make(vma_init=leak), memory="16M") as machine:
        mm = machine.mm()
        with pytest.raises(pykmm.PluginError, match=r"vma_init\(\) returned .* still holds an RCU read section"):
            mm.mmap(0, 0x4000, RW, PRIVATE_ANON)


@pytest.mark.parametrize("call", [
    kernel.mmap_read_unlock, kernel.up_write, kernel.write_sequnlock, lambda cpu, mm: kernel.rcu_read_unlock(cpu),
    lambda cpu, mm: kernel.srcu_read_unlock(cpu, 0)])
def test_releasing_what_is_not_held(call: Any) -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        call(cpu, mm)

    with pykmm.Machine(strategy=make(handle_fault=handle_fault), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(RuntimeError, match=r"_\w*unlock\(\) on CPU 0|up_write\(\) on CPU 0"):
            mm.load(a, 1)
        machine.validate()


def test_handles_end_with_their_callback() -> None:
    kept: list[Any] = []

    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.mmap_read_lock(cpu, mm)
        kept.extend([cpu, mm, kernel.find_vma(cpu, mm, address)])
        kernel.mmap_read_unlock(cpu, mm)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    with pykmm.Machine(strategy=make(handle_fault=handle_fault), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        mm.load(a, 1)
        cpu, handle, vma = kept
        for use in (lambda: cpu.id, lambda: handle.map_count, lambda: vma.vm_start, lambda: vma.detached,
                    lambda: kernel.mmap_read_lock(cpu, handle), lambda: kernel.count(cpu, "seen"),
                    lambda: kernel.spf_free_vma(cpu, vma), lambda: kernel.srcu_read_lock(cpu),
                    lambda: setattr(vma, "strategy_data", 1)):
            with pytest.raises(ReferenceError, match="callback of the strategy that has returned"):
                use()
    assert "over" in repr(vma)
    with pytest.raises(TypeError):
        kernel.CpuHandle()
    with pytest.raises(TypeError):
        kernel.mmap_read_lock(None, None)  # type: ignore[arg-type]


def test_handles_of_two_callbacks_do_not_mix() -> None:
    kept: list[Any] = []

    def vma_write_begin(self: Any, cpu: Any, vma: Any, subclass: int) -> None:
        kept.append(vma)

    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        return kernel.handle_mm_fault(cpu, kept[0], address, flags)

    made = make(handle_fault=handle_fault, vma_write_begin=vma_write_begin, vma_write_end=lambda self, cpu, vma: None)
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        mm.mprotect(a, 0x1000, 1)
        with pytest.raises(ReferenceError):
            mm.load(a, 1)


def test_unknown_counter() -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.count(cpu, "sene")

    with pykmm.Machine(strategy=make(handle_fault=handle_fault), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(KeyError, match="no counter 'sene'; the strategy has seen, none"):
            mm.load(a, 1)


# ---- never finishing ----

def one_store(threads: int = 2) -> pykmm.Tape:
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x8000, prot="rw")
    for number in range(threads):
        tape.thread().store(a + number * 0x1000, b"x")
    return tape


def test_the_watchdog_ends_python_code_that_loops() -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        while cpu.id == 1:
            pass
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    with pykmm.Machine(strategy=make(handle_fault=handle_fault), memory="16M") as machine:
        with pytest.raises(pykmm.PluginError, match=r"(?s)'made': nothing has happened for 0.2 s; CPU 1 is in "
                                                    r"operation 2 \(store\).*while cpu.id == 1"):
            machine.run(one_store(), watchdog=0.2)
        machine.validate()      # the loop was ended: the machine goes on
        used(machine)


def test_the_watchdog_gives_up_on_threads_that_do_not_end() -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.await_equal(cpu, mm, 1, 1)

    machine = pykmm.Machine(strategy=make(handle_fault=handle_fault), memory="16M")
    mm = machine.mm()
    with pytest.raises(pykmm.PluginError, match=r"(?s)nothing has happened .*await_equal.*the machine is given up"):
        machine.run(one_store(1), watchdog=0.2)
    assert machine.closed
    with pytest.raises(ValueError, match="closed"):
        mm.load(0, 1)
    machine.close()


def test_watchdog_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from pykmm.machine import WATCHDOG_SECONDS, watchdog_seconds

    assert watchdog_seconds() == WATCHDOG_SECONDS
    monkeypatch.setenv("PYKMM_WATCHDOG", "2.5")
    assert watchdog_seconds() == 2.5
    monkeypatch.setenv("PYKMM_WATCHDOG", "soon")
    with pytest.raises(ValueError, match="PYKMM_WATCHDOG='soon' is no number of seconds"):
        pykmm.Machine(memory="16M").run(one_store())


# ---- the check engine ----

@pytest.fixture
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    registry = get_plugin_manager().strategies
    before = dict(registry._entries)
    yield
    registry._entries = before


def check(strategy: Any, tape: pykmm.Tape | None = None, **options: Any) -> pykmm.CheckReport:
    registry = get_plugin_manager().strategies
    registry.add(strategy.name, strategy if isinstance(strategy, type) else lambda: strategy)
    options = {"memory_model": "sc", "max_seconds": 60, **options}
    return pykmm.check(race() if tape is None else tape, strategy=strategy.name, **options)


def race() -> pykmm.Tape:
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.setup.store(a, b"A")
    tape.thread().store(a + 0x1000, b"B")
    tape.thread().munmap(a + 0x1000, 0x1000)
    return tape


def test_check_exhausts_a_correct_one(registered: None) -> None:
    report = check(Plain)
    assert report.ok, str(report)
    assert report.complete
    compiled = pykmm.check(race(), strategy="mmap_sem", memory_model="sc")
    assert set(report.outcomes) == set(compiled.outcomes)


def test_check_finds_a_use_after_free(registered: None) -> None:
    class NoLock(Plain):
        name = "no-lock"

        def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
            vma = kernel.find_vma(cpu, mm, address)
            if vma is None or vma.vm_start > address:
                return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)
            return kernel.handle_mm_fault(cpu, vma, address, flags)

    report = check(NoLock)
    assert not report.ok
    assert report.violations[0].kind in ("use-after-free", "broken-structure", "leak")
    assert "handle_fault" in str(report)            # the trace names lines of the strategy
    assert "test_pystrategy.py" in str(report)
    assert report.replay().kind == report.violations[0].kind


@pytest.mark.parametrize(("handle_fault", "kind", "message"), [
    (bad_fault, "exception", r"handle_fault\(\) of strategy 'made' on CPU 0: ValueError: no writes today"),
    (lambda self, cpu, mm, address, flags: None, "exception", "returned None"),
    (lambda self, cpu, mm, address, flags: 0, "livelock", "'made': handle_fault said 1000 times in a row"),
    (lambda self, cpu, mm, address, flags: kernel.rcu_read_lock(cpu) or 0, "lock-held", "still holds an RCU read sec"),
    (lambda self, cpu, mm, address, flags: kernel.mmap_read_lock(cpu, mm) or kernel.mmap_read_lock(cpu, mm),
     "lock-order", "deadlock"),
])
def test_check_reports_misbehaviour(registered: None, handle_fault: Any, kind: str, message: str) -> None:
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.thread().store(a, b"B")
    tape.thread().munmap(a + 0x1000, 0x1000)
    report = check(make(handle_fault=handle_fault), tape)
    assert [violation.kind for violation in report.violations] == [kind]
    import re

    assert re.search(message, report.violations[0].message), report.violations[0].message
    assert report.replay().kind == kind


def test_check_survives_a_crash(registered: None) -> None:
    """A VMA that was freed has a pointer to nowhere: on a thread, too, that is a violation."""
    class Crash(Plain):
        name = "crash"
        free_vma = kernel.vm_area_free

        def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
            kernel.mmap_read_lock(cpu, mm)
            vma = kernel.find_vma(cpu, mm, address)
            kernel.mmap_read_unlock(cpu, mm)
            if vma is None or not mm.map_count:     # another CPU may come in between
                return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)
            return kernel.handle_mm_fault(cpu, vma, address, flags)

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.thread().store(a, b"B")
    tape.thread().munmap(a, 0x3000)
    report = check(Crash, tape, stop_at_violation=False, explorer="random", max_executions=1000, minimised=False)
    assert any("follows a pointer out of freed memory" in violation.message for violation in report.violations)


def test_an_exception_in_the_setup_of_a_tape(registered: None) -> None:
    with pytest.raises(ValueError, match="no writes today"):
        check(make(handle_fault=bad_fault))


def test_code_that_depends_on_more_than_the_schedule_is_noticed(registered: None) -> None:
    calls = 0

    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            kernel.smp_mb(cpu)
            assert mm.map_count
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    with pytest.raises(RuntimeError, match="did not do the same again"):
        check(make(handle_fault=handle_fault))


def test_the_watchdog_of_the_check_engine(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pykmm.checking.python_tape import PythonTapeCheck

    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        while True:
            pass

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.thread().store(a, b"B")
    monkeypatch.setattr(PythonTapeCheck, "watchdog", 0.3)
    with pytest.raises(RuntimeError, match=r"(?s)strategy 'made': Python code of Cpu 0 has not come to a "
                                           r"primitive for 0.3 s.*while True"):
        check(make(handle_fault=handle_fault), tape)


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
