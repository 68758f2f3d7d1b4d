# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python: handles, locks and threads that are not what a kernel function wants."""
from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
from made_strategies import PRIVATE_ANON, RW, Fallback, Full, Plain, in_every_fault, make, mapped
from python_strategies import PythonSpf

import pykmm
from pykmm import kernel

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

    with pykmm.Machine(strategy=make(Plain, handle_fault=handle_fault), memory="16M") as machine:
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

    strategy = make(Plain, vma_start_write=leak)        # it may last until the unlock
    with pykmm.Machine(strategy=strategy, memory="16M") as machine:
        mm = machine.mm()
        with pytest.raises(pykmm.PluginError, match="left an RCU read section open: the call on CPU 0 has ended"):
            mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
    tape = pykmm.Tape()
    thread = tape.thread()
    thread.touch(thread.mmap(0x4000), 0x4000)
    machine = pykmm.Machine(strategy=strategy, memory="16M")
    with pytest.raises(pykmm.PluginError, match="left an earlier callback with an RCU read section held"):
        machine.run(tape)
    with pytest.raises(pykmm.PluginError, match="left an RCU read section open"):   # at exit(), again
        machine.close()
    with pykmm.Machine(strategy=make(Plain, vma_init=leak), memory="16M") as machine:
        mm = machine.mm()
        with pytest.raises(pykmm.PluginError, match=r"vma_init\(\) returned .* still holds an RCU read section"):
            mm.mmap(0, 0x4000, RW, PRIVATE_ANON)


@pytest.mark.parametrize("call", [
    kernel.mmap_read_unlock, kernel.up_write, kernel.write_sequnlock, lambda cpu, mm: kernel.rcu_read_unlock(cpu),
    lambda cpu, mm: kernel.srcu_read_unlock(cpu, 0)])
def test_releasing_what_is_not_held(call: Any) -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        call(cpu, mm)

    with pykmm.Machine(strategy=make(Plain, handle_fault=handle_fault), memory="16M") as machine:
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

    with pykmm.Machine(strategy=make(Plain, handle_fault=handle_fault), memory="16M") as machine:
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

    made = make(Plain, handle_fault=handle_fault, vma_write_begin=vma_write_begin,
                vma_write_end=lambda self, cpu, vma: None)
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        mm.mprotect(a, 0x1000, 1)
        with pytest.raises(ReferenceError):
            mm.load(a, 1)


def test_unknown_counter() -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.count(cpu, "sene")

    with pykmm.Machine(strategy=make(Plain, handle_fault=handle_fault), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        with pytest.raises(KeyError, match="no counter 'sene'; the strategy has seen, none"):
            mm.load(a, 1)


# ---- handles that nobody made ----

@pytest.mark.parametrize("kind", [kernel.CpuHandle, kernel.MmHandle, kernel.VmaHandle, kernel.FieldHandle,
                                  kernel.MachineRef, kernel.PageHandle, kernel.EntryHandle, kernel.PageArray])
def test_handles_without_a_callback(kind: Any) -> None:
    fake = kind.__new__(kind)
    assert isinstance(repr(fake), str)
    for name in dir(fake):
        if not name.startswith("_"):
            try:
                value = getattr(fake, name)
                if callable(value):
                    value("strategy_data")
            except (ReferenceError, TypeError):
                pass
    cpu = kernel.CpuHandle.__new__(kernel.CpuHandle)
    for name in kernel.__all__:
        function = getattr(kernel, name)
        if callable(function) and not isinstance(function, type) and name != "access_error":
            for arguments in ((cpu, fake), (cpu, fake, 0), (cpu, fake, 0, 0), (cpu,), (fake,), ()):
                with pytest.raises((ReferenceError, TypeError)):
                    function(*arguments)
    for make_copy in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            make_copy(fake)


def test_a_kernel_function_that_nobody_made() -> None:
    fake = kernel.KernelFunction.__new__(kernel.KernelFunction)

    def body(cpu: Any, mm: Any) -> None:
        with pytest.raises(TypeError, match="made by pykmm"):
            fake(cpu, mm, 1, 2)

    with pykmm.Machine(strategy=in_every_fault(body), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
    with pytest.raises(pykmm.PluginError, match="none of the table's"):
        make(Fallback, free_vma=fake)


def test_wrong_types() -> None:
    def body(cpu: Any, mm: Any) -> None:
        for name in kernel.__all__:
            function = getattr(kernel, name)
            if not callable(function) or isinstance(function, type) or name == "access_error":
                continue
            for arguments in ((None, None), ("cpu", mm), (cpu, "mm"), (cpu, cpu), (mm, cpu), (cpu, mm, "x"),
                              (cpu, None, -1), (cpu, 1 << 70, 1 << 70, 1 << 70)):
                with pytest.raises((TypeError, OverflowError, KeyError, RuntimeError)):
                    function(*arguments)
        seen.append(cpu.id)

    seen: list[int] = []
    with pykmm.Machine(strategy=in_every_fault(body), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
        machine.validate()
    assert seen == [0]


# ---- other threads, other machines, the machine itself ----

def test_a_thread_that_does_not_drive_the_cpu() -> None:
    def body(cpu: Any, mm: Any) -> None:
        def other() -> None:
            for use in (lambda: kernel.mmap_read_lock(cpu, mm), lambda: mm.map_count, lambda: kernel.smp_mb(cpu),
                        lambda: kernel.rcu_read_unlock(cpu), lambda: setattr(mm, "strategy_data", 1)):
                try:
                    use()
                except RuntimeError as error:
                    errors.append(str(error))
        kernel.rcu_read_lock(cpu)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        kernel.rcu_read_unlock(cpu)

    errors: list[str] = []
    with pykmm.Machine(strategy=in_every_fault(body), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
        machine.validate()
    assert len(errors) == 5
    assert all("by a thread that does not drive CPU 0" in error for error in errors)


def test_the_machine_from_inside() -> None:
    def body(cpu: Any, mm: Any) -> None:
        for use in (lambda: space.load(a, 1), lambda: space.store(a, b"y", cpu=1), machine.mm, machine.validate,
                    lambda: machine.vmstat, space.proc_maps, lambda: machine.run(pykmm.Tape()),
                    lambda: machine.file("f", size=1), machine.close, space.exit):
            try:
                use()
            except RuntimeError as error:
                errors.append(str(error))

    errors: list[str] = []
    with pykmm.Machine(strategy=in_every_fault(body), memory="16M") as machine:
        space, a = mapped(machine)
        space.store(a, b"x")
        assert space.load(a, 1) == b"x"
        machine.validate()
    assert len(errors) == 10, errors
    assert sum("may not use the machine that has called it" in error for error in errors) >= 9, errors


def test_another_machine_from_inside() -> None:
    def body(cpu: Any, mm: Any) -> None:
        with pykmm.Machine(strategy=inner, memory="16M") as other:
            space, b = mapped(other)
            space.store(b, b"inner")
            loaded.append(space.load(b, 5))

    loaded: list[bytes] = []
    inner = Fallback()
    with pykmm.Machine(strategy=in_every_fault(body), memory="16M") as machine:
        mm, a = mapped(machine)
        mm.store(a, b"x")
        assert mm.load(a, 1) == b"x"
        machine.validate()
    assert loaded == [b"inner"]


def test_one_strategy_on_two_machines_at_once() -> None:
    made = PythonSpf()
    with pykmm.Machine(strategy=made, memory="16M") as one, pykmm.Machine(strategy=made, memory="16M",
                                                                         arch="ppc64") as two:
        spaces = [mapped(machine) for machine in (one, two)]

        def use(mm: pykmm.MmStruct, a: int, cpu: int) -> None:
            for _ in range(30):
                b = mm.mmap(0, 0x40000, RW, PRIVATE_ANON, cpu=cpu)
                mm.touch(b, 0x40000, "w", cpu=cpu)
                mm.munmap(b, 0x40000, cpu=cpu)

        threads = [threading.Thread(target=use, args=(*space, cpu)) for space in spaces for cpu in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.validate()
        two.validate()
        assert one.counters["speculative" if "speculative" in one.counters else "successes"] > 0


def test_nothing_is_remembered_of_a_machine_that_is_gone() -> None:
    """The next machine's CPUs may lie where those of the last one were."""
    def vma_start_write(self: Any, cpu: Any, vma: Any) -> None:
        if armed:
            kernel.rcu_read_lock(cpu)   # left behind

    armed = True
    made = make(Fallback, vma_start_write=vma_start_write)
    for _ in range(3):
        machine = pykmm.Machine(strategy=made, cpus=1, memory="16M")
        with pytest.raises(pykmm.PluginError, match="has left an RCU read section open: the call on CPU 0"):
            mapped(machine)
        machine.close()
    armed = False
    for _ in range(8):
        with pykmm.Machine(strategy=made, cpus=1, memory="16M") as machine:
            mm, a = mapped(machine)
            mm.store(a, b"x")
