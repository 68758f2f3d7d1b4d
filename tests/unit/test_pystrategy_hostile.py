# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python and the interpreter: garbage, recursion, all kinds of exceptions, processes."""
from __future__ import annotations

import enum
import gc
import inspect
import os
import pathlib
import signal
import subprocess
import sys
import weakref
from typing import Any

import pytest
from made_strategies import PRIVATE_ANON, RW, Everything, Fallback, in_every_fault, make, mapped
from python_strategies import PythonGup, PythonRefcount, PythonSpf

import pykmm
from pykmm import kernel
from pykmm.strategy import MEMBERS

# ---- garbage ----

def test_a_cycle_through_the_machine_is_collected() -> None:
    class Cyclic(PythonRefcount):
        name = "cyclic"
        machine: Any = None

        def quiesce(self, cpu: Any, machine: Any) -> None:
            kernel.rcu_barrier(cpu, machine)
            quiesced.append(self.machine is not None or True)

    quiesced: list[bool] = []
    made = Cyclic()
    made.machine = pykmm.Machine(strategy=made, memory="16M")
    made.space, a = mapped(made.machine)
    made.space.store(a, b"x")
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None
    assert quiesced


def test_garbage_is_collected_inside_of_a_callback() -> None:
    """Address spaces, pins and whole machines that end there."""
    def body(cpu: Any, mm: Any) -> None:
        trash.clear()
        gc.collect()

    trash: list[Any] = []
    with pykmm.Machine(strategy=in_every_fault(body), memory="16M") as machine:
        mm, a = mapped(machine)
        for _ in range(5):
            other, b = mapped(machine)
            other.touch(b, 0x2000, "w")
            trash += [other, other.pin(b, 0x1000), machine.file("f", size=1)]
            trash.append(pykmm.Machine(strategy=Fallback(), memory="16M"))
            del other
            mm.touch(a, 0x4000, "w")
            mm.madvise(a, 0x4000, 4)
        mm.exit()
        machine.mm().exit()
        machine.validate()


def test_a_finaliser_that_uses_the_machine() -> None:
    class Trap:
        def __del__(self) -> None:
            try:
                mm.load(a, 1)
            except RuntimeError as error:
                errors.append(str(error))

    def body(cpu: Any, mm: Any) -> None:
        Trap()

    errors: list[str] = []
    with pykmm.Machine(strategy=in_every_fault(body), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
    assert len(errors) == 1
    assert "may not use the machine" in errors[0]


# ---- recursion ----

def test_recursion() -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.rcu_read_lock(cpu)
        if len(deep) < 5:
            deep.append(1)
            return self.handle_fault(cpu, mm, address, flags)
        while True:
            return self.handle_fault(cpu, mm, address, flags)

    deep: list[int] = []
    with pykmm.Machine(strategy=make(Fallback, handle_fault=handle_fault), memory="16M") as machine:
        mm, a = mapped(machine)
        with pytest.raises(RuntimeError, match="holds more than 30 locks"):
            mm.store(a, b"x")
        machine.validate()

    def forever(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        return self.handle_fault(cpu, mm, address, flags)

    with pykmm.Machine(strategy=make(Fallback, handle_fault=forever), memory="16M") as machine:
        mm, a = mapped(machine)
        with pytest.raises(RecursionError):
            mm.store(a, b"x")
        machine.validate()


@pytest.mark.parametrize("more", range(6))
def test_recursion_through_the_kernel(more: int) -> None:
    """mmap_write_lock() faults, below a stack, which takes mmap_write_lock(). The interpreter's stack may end in the
    method, in the call of it, or in what is done when it has failed: the core has mmap_sem each time."""
    class Loop(PythonRefcount):
        name = "loop"
        stack = 0

        def mmap_write_lock(self, cpu: Any, mm: Any, start: int, end: int) -> None:
            if self.stack:
                kernel.handle_fault_mmap_sem(cpu, mm, self.stack, kernel.FAULT_FLAG_WRITE)
            super().mmap_write_lock(cpu, mm, start, end)

    made = Loop()
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0x10000000, 0x2000, RW, PRIVATE_ANON | 0x110)
        made.stack = a - 0x1000
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack()) + 150 + more)
        try:
            with pytest.raises(RecursionError):
                mm.store(a - 0x1000, b"x")
        finally:
            sys.setrecursionlimit(limit)
        with pytest.raises(pykmm.PluginError, match="can only be closed"):
            mm.load(a, 1)


def test_a_vm_fault_inside_of_its_own_fault() -> None:
    class Again(PythonSpf):
        name = "again"

        def lock(self, cpu: Any, vmf: Any) -> str:
            kernel.walk_end(cpu, vmf.mm)
            try:
                kernel.handle_pte_fault(cpu, vmf)
            finally:
                kernel.walk_begin(cpu, vmf.mm)
            return "ptl_contended"

    with pykmm.Machine(strategy=Again(), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
        with pytest.raises(RuntimeError, match="handle_pte_fault.*: handle_pte_fault.* is under way with this VmFault"):
            mm.store(a + 0x1000, b"x")
        machine.validate()


def test_vm_faults_and_pages_of_earlier_callbacks() -> None:
    kept: list[Any] = []

    class Keeps(PythonSpf):
        name = "keeps"

        def speculative_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> tuple[int, str]:
            for old in kept:
                for use in (lambda old=old: old.vma, lambda old=old: old.mm, lambda old=old: kernel.pmd_same(cpu, old),
                            lambda old=old: kernel.handle_pte_fault(cpu, old)):
                    with pytest.raises(ReferenceError):
                        use()
            return super().speculative_fault(cpu, mm, address, flags)

        def lock(self, cpu: Any, vmf: Any) -> str:
            kept.append(vmf)
            return super().lock(cpu, vmf)

    with pykmm.Machine(strategy=Keeps(), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.touch(a, 0x4000, "w")
        assert len(kept) == 3
        assert kept[0].address == a + 0x1000    # what was captured stays
        machine.validate()


# ---- exceptions ----

class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class Value:
    def __repr__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize("error", [Unprintable, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError,
                                   StopIteration])
def test_exceptions_of_all_kinds(error: Any) -> None:
    def raises(*_: Any) -> Any:
        raise error

    with pykmm.Machine(strategy=make(Fallback, handle_fault=raises), memory="16M") as machine:
        mm, a = mapped(machine)
        with pytest.raises(error):
            mm.store(a, b"x")
        machine.validate()
    with pykmm.Machine(strategy=make(Fallback, vma_init=raises), memory="16M") as machine:
        mm = machine.mm()
        with pytest.raises(error):
            mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(pykmm.PluginError, match=f"its strategy has raised {error.__name__}"):
            machine.mm()


def test_one_exception_object_again_and_again() -> None:
    error = ValueError("always me")

    def raises(*_: Any) -> Any:
        raise error

    with pykmm.Machine(strategy=make(Fallback, handle_fault=raises), memory="16M") as machine:
        mm, a = mapped(machine)
        for _ in range(50):
            with pytest.raises(ValueError, match="always me"):
                mm.store(a, b"x")
    assert error.__notes__ == ["in handle_fault() of strategy 'made' on CPU 0"]


def test_a_result_without_a_repr() -> None:
    with pykmm.Machine(strategy=make(Fallback, handle_fault=lambda *_: Value()), memory="16M") as machine:
        mm, a = mapped(machine)
        with pytest.raises(pykmm.PluginError, match=r"returned a Value, whose __repr__\(\) raises ValueError; it has"):
            mm.store(a, b"x")


def test_results_that_are_ints() -> None:
    class Fault(enum.IntFlag):
        MAJOR = 4

    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        return Fault(kernel.handle_fault_mmap_sem(cpu, mm, address, flags)) | Fault.MAJOR

    with pykmm.Machine(strategy=make(Fallback, handle_fault=handle_fault), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
        assert machine.vmstat["pgmajfault"] == 1


def test_an_exception_below_another_callback() -> None:
    """handle_fault() calls the kernel, which calls mmap_write_lock(), which raises: so does the call."""
    class Nested(PythonRefcount):
        name = "nested"
        armed = False

        def mmap_write_lock(self, cpu: Any, mm: Any, start: int, end: int) -> None:
            if self.armed:
                raise KeyError("writer")
            super().mmap_write_lock(cpu, mm, start, end)

        def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
            try:
                return super().handle_fault(cpu, mm, address, flags)
            except KeyError:
                caught.append(address)
                raise

    caught: list[int] = []
    made = Nested()
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0x10000000, 0x2000, RW, PRIVATE_ANON | 0x110)
        made.armed = True
        with pytest.raises(KeyError, match="writer") as error:
            mm.store(a - 0x1000, b"x")
        assert [note.partition("(")[0] for note in error.value.__notes__] == [
            "in mmap_write_lock", "the machine is poisoned: it can only be closed", "in handle_fault"]
    assert caught == [a - 0x1000]


@pytest.mark.parametrize("member", sorted(set(MEMBERS) - {"pte_spinlock", "filemap_fault", "mmap_write_downgrade"}))
def test_every_method_raises_in_the_end(member: str) -> None:
    """While the machine is closed, or the address space goes away."""
    base: Any = {"pte_map_lock": PythonSpf, "gup_fast": PythonGup}.get(member, Everything)
    armed = False

    def raises(self: Any, cpu: Any, *arguments: Any) -> Any:
        if armed:
            raise ValueError(f"not {member}")
        result = getattr(base, member, lambda *_: 0 if member == "mm_init" else None)
        return result(self, cpu, *arguments)

    machine = pykmm.Machine(strategy=make(base, **{member: raises}), memory="16M")
    mm, a = mapped(machine)
    mm.store(a, b"x")
    mm.fork()
    armed = True
    try:
        machine.close()
    except ValueError as error:
        assert str(error) == f"not {member}"
    assert machine.closed


# ---- processes ----

def test_a_process_that_forks() -> None:
    """A child process has the machine as it was."""
    with pykmm.Machine(strategy=PythonSpf(), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                mm.store(a + 0x1000, b"y")
                mm.munmap(a, 0x1000)
                machine.validate()
                status = 0 if mm.load(a + 0x1000, 1) == b"y" else 2
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert mm.load(a + 0x1000, 1) == b"\0"
        machine.validate()


TWO = """\
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pykmm
from pykmm.plugin import get_plugin_manager

sys.path.insert(0, sys.argv[1])


def register():
    from python_strategies import PythonSpf, PythonSpfUnchecked
    for cls in (PythonSpf, PythonSpfUnchecked):
        get_plugin_manager().strategies.add(cls.name, cls)


def searches(executor):
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.setup.store(a, b"A")
    tape.thread().store(a + 0x1000, b"B")
    tape.thread().munmap(a + 0x1000, 0x1000)
    for name in ("python-spf", "python-spf-unchecked"):
        report = pykmm.check(tape, strategy=name, memory_model="sc", executor=executor, max_seconds=100)
        print(report.ok, report.complete or report.violations[0].kind, end=" ")
    print()


if __name__ == "__main__":
    register()
    searches(None)
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver"), register) as executor:
        searches(executor)
    with ThreadPoolExecutor(2) as executor:
        searches(executor)
"""


def test_searches_with_two_workers(tmp_path: Any) -> None:
    (tmp_path / "two.py").write_text(TWO)
    lib = pathlib.Path(__file__).resolve().parents[1] / "lib"
    done = subprocess.run([sys.executable, str(tmp_path / "two.py"), str(lib)], capture_output=True, text=True,
                          check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    alone, processes, threads = done.stdout.splitlines()
    assert alone.startswith("True True False ")
    assert processes.startswith("True True False ")
    assert threads.startswith("True True False ")


def test_an_interrupt_of_a_run() -> None:
    """Ctrl-C while methods run on other threads."""
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        if cpu.id == 1:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                kernel.smp_mb(cpu)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x4000, prot="rw")
    tape.thread().load(a, 1)
    tape.thread().load(a + 0x1000, 1)
    with pykmm.Machine(strategy=make(Fallback, handle_fault=handle_fault), memory="16M") as machine:
        with pytest.raises(KeyboardInterrupt):
            machine.run(tape)
        machine.validate()
