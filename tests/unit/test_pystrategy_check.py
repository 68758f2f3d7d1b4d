# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python on the check engine; and code that never comes back, there and on the native one."""
from __future__ import annotations

from typing import Any

import pytest
from made_strategies import Everything, Plain, bad_fault, make, used
from python_strategies import PythonGup, PythonSpf

import pykmm
from pykmm import kernel
from pykmm.plugin import get_plugin_manager
from pykmm.strategy import MEMBERS

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

    with pykmm.Machine(strategy=make(Plain, handle_fault=handle_fault), memory="16M") as machine:
        with pytest.raises(pykmm.PluginError, match=r"(?s)'made': nothing has happened for 0.2 s; CPU 1 is in "
                                                    r"operation 2 \(store\).*while cpu.id == 1"):
            machine.run(one_store(), watchdog=0.2)
        machine.validate()      # the loop was ended: the machine goes on
        used(machine)


def test_the_watchdog_gives_up_on_threads_that_do_not_end() -> None:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.await_equal(cpu, mm, 1, 1)

    machine = pykmm.Machine(strategy=make(Plain, handle_fault=handle_fault), memory="16M")
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


@pytest.mark.parametrize(("base", "member"), [(PythonSpf, "pte_map_lock"), (PythonGup, "gup_fast")])
def test_the_watchdog_ends_a_loop_with_irqs_off(base: type[pykmm.PythonStrategy], member: str) -> None:
    def loops(self: Any, cpu: Any, x: Any, *_: Any) -> Any:
        if member == "pte_map_lock":
            kernel.walk_begin(cpu, x.mm)
        else:
            kernel.begin_lockless_pgtbl_walk(cpu, x)
        while True:
            kernel.smp_mb(cpu)

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x4000, prot="rw")
    tape.setup.store(a, b"A")
    x = tape.thread()
    if member == "pte_map_lock":
        x.store(a + 0x1000, b"x")
    else:
        x.pin(a, 0x1000)
    tape.thread().munmap(a + 0x2000, 0x1000)
    with pykmm.Machine(strategy=make(base, **{member: loops}), memory="16M") as machine:
        with pytest.raises(pykmm.PluginError, match=r"(?s)'made': nothing has happened for 0.3 s.*in loops"):
            machine.run(tape, watchdog=0.3)
        machine.validate()


# ---- the check engine ----

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
    assert "test_pystrategy_check.py" in str(report)
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
    report = check(make(Plain, handle_fault=handle_fault), tape)
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
        check(make(Plain, handle_fault=bad_fault))


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
        check(make(Plain, handle_fault=handle_fault))


def test_the_watchdog_of_the_check_engine(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pykmm.checking.python_tape import PythonTapeCheck

    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        while True:
            pass

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.thread().store(a, b"B")
    monkeypatch.setattr(PythonTapeCheck, "watchdog", 0.3)
    with pytest.raises(pykmm.PluginError, match=r"(?s)strategy 'made': Python code of Cpu 0 has not come to a "
                                                r"primitive for 0.3 s.*while True"):
        check(make(Plain, handle_fault=handle_fault), tape)


@pytest.mark.parametrize("member", sorted(set(MEMBERS) - {"mm_init", "mm_exit", "quiesce", "gup_fast", "filemap_fault",
                                                          "pte_spinlock"}))
def test_every_method_raises_on_the_check_engine(member: str, registered: None) -> None:
    base: Any = PythonSpf if "pte" in member else Everything

    def raises(self: Any, cpu: Any, *arguments: Any) -> Any:
        if cpu.id == 1:
            raise ValueError(f"not {member}")
        return getattr(base, member)(self, cpu, *arguments)

    get_plugin_manager().strategies.add("made", lambda: make(
        base, munmap_downgrade=member == "mmap_write_downgrade", **{member: raises}))
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x4000, prot="rw")
    tape.setup.store(a, b"A")
    tape.thread().load(a, 1)
    other = tape.thread()
    other.store(a + 0x1000, b"B")
    other.munmap(a + 0x2000, 0x1000)
    other.munmap(a, 0x4000)
    report = pykmm.check(tape, strategy="made", memory_model="sc", max_seconds=60)
    assert [violation.kind for violation in report.violations] == ["exception"]
    assert f"{member}() of strategy 'made' on CPU 1: ValueError: not {member}" in report.violations[0].message
    assert report.replay().kind == "exception"


def zapping() -> pykmm.Tape:
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.setup.store(a, b"A")
    tape.thread().store(a + 0x1000, b"B")
    tape.thread().madvise(a, 0x3000, 4)
    return tape


def refuse_and_raise(self: Any, cpu: Any, vmf: Any) -> bool:
    kernel.walk_begin(cpu, vmf.mm)
    raise ValueError("hook")


@pytest.mark.parametrize(("pte_map_lock", "kind", "message"), [
    (refuse_and_raise, "exception", r"pte_map_lock\(\) of strategy 'made' on CPU 0: ValueError: hook"),
    (lambda self, cpu, vmf: None, "exception", "returned None"),
    (lambda self, cpu, vmf: True, "exception", "does not hold the page-table lock"),
    (lambda self, cpu, vmf: kernel.walk_begin(cpu, vmf.mm) or False, "lock-held", "still holds a page-table walk"),
])
def test_hooks_on_the_check_engine(pte_map_lock: Any, kind: str, message: str) -> None:
    from pykmm.plugin import get_plugin_manager

    registry = get_plugin_manager().strategies
    before = dict(registry._entries)
    registry.add("made", lambda: make(PythonSpf, pte_map_lock=pte_map_lock))
    try:
        report = pykmm.check(zapping(), strategy="made", memory_model="sc", max_seconds=60)
    finally:
        registry._entries = before
    assert [violation.kind for violation in report.violations] == [kind]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(report.violations[0].message)
