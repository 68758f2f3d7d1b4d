# SPDX-License-Identifier: GPL-2.0-only
"""pykmm_ext/strategy.pyx and machine/tlb.pyx: compiled strategies that cannot work, or misbehave."""
from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import pykmm
from pykmm.plugin import get_plugin_manager
from pykmm_ext.mm.vma_lock_test import Reader
from pykmm_ext.strategy import Strategy
from pykmm_ext.strategy_test import MISTAKES, Mistake

RW = 3
PRIVATE_ANON = 0x22
FIXED = 0x10


@pytest.mark.parametrize(("what", "message"), [
    ("no_table", "Mistake has set no table"),
    ("no_handle_fault", "its table has no handle_fault"),
    ("no_name", "its table has no name"),
    ("no_size", "its table says that it has 0 bytes"),
    ("newer", r"its table has \d+ bytes and this pykmm knows \d+: it was compiled against a newer pykmm"),
    ("half", "its table has vma_write_begin and no vma_write_end"),
    ("downgrade", r"munmap_downgrade needs an mmap_write_downgrade\(\) beside mmap_write_unlock\(\)"),
])
def test_tables_that_cannot_work(what: str, message: str) -> None:
    with pytest.raises(pykmm.PluginError, match=rf"strategy '{what}': {message}"):
        pykmm.Machine(strategy=Mistake(what), memory="16M")
    with pytest.raises(pykmm.PluginError, match="has set no table"):
        pykmm.Machine(strategy=Strategy(), memory="16M")


LEAKS = {
    "leaks_sem": "mmap_sem held", "leaks_sem_w": "mmap_sem held", "leaks_ptl": "the lock of a page table held",
    "leaks_srcu": "a read section of vma_srcu open", "leaks_rcu": "an RCU read section open", "leaks_irq": "IRQs off",
}


@pytest.mark.parametrize("what", ["leaks_sem", "leaks_sem_w", "leaks_rcu", "leaks_irq"])
def test_what_a_call_leaves_behind(what: str) -> None:
    """The next one might wait for it for ever."""
    machine = pykmm.Machine(cpus=2, strategy=Mistake(what), memory="16M")
    mm = machine.mm()
    a = mm.mmap(0, 0x1000, RW, PRIVATE_ANON)
    with pytest.raises(pykmm.PluginError) as caught:
        mm.load(a, 1, cpu=1)
    text = f"strategy 'mistake' has left {LEAKS[what]}: the call on CPU 1 has ended, and nobody else is in one"
    assert str(caught.value) == text
    assert caught.value.__notes__ == ["the machine is poisoned: it can only be closed"]
    with pytest.raises(pykmm.PluginError, match=f"this machine can only be closed: PluginError: {text}"):
        mm.munmap(a, 0x1000)
    machine.close()
    assert machine.closed


def test_a_call_is_not_blamed_for_what_others_hold() -> None:
    machine = pykmm.Machine(cpus=2, strategy=Mistake("leaks_sem"), memory="16M")
    mm = machine.mm()
    a = mm.mmap(0, 0x1000, RW, PRIVATE_ANON)
    somebody = Reader(mm, a, False)     # a call in progress, on CPU 0
    assert mm.load(a, 1, cpu=1) == b"\0"
    somebody.leave()
    with pytest.raises(pykmm.PluginError, match=r"has left mmap_sem held \(address space 1\): the machine cannot"):
        machine.validate()
    with pytest.raises(pykmm.PluginError, match="the machine counts as closed"):
        machine.close()


@pytest.mark.parametrize(("what", "where"), [("leaks_ptl", " (address space 1, 0x7f0000000000)"), ("leaks_srcu", "")])
def test_what_is_seen_when_all_is_looked_at(what: str, where: str) -> None:
    """Neither validate() nor close() waits for it."""
    machine = pykmm.Machine(cpus=2, strategy=Mistake(what), memory="16M")
    mm = machine.mm()
    mm.load(mm.mmap(0x7F0000000000, 0x1000, RW, PRIVATE_ANON | FIXED), 1)
    for use, otherwise in (machine.validate, "cannot be validated"), (machine.close, "counts as closed"):
        with pytest.raises(pykmm.PluginError) as caught:
            use()
        assert f"strategy 'mistake' has left {LEAKS[what]}{where}: the machine {otherwise}" in str(caught.value)
    assert machine.closed
    machine.close()


@pytest.mark.parametrize("what", LEAKS)
def test_what_a_run_leaves_behind(what: str) -> None:
    """The end of its address spaces would wait for it for ever."""
    tape = pykmm.Tape()
    thread = tape.thread()
    thread.touch(thread.mmap(0x1000), 0x1000, "write")
    machine = pykmm.Machine(strategy=Mistake(what), memory="16M")
    with pytest.raises(pykmm.PluginError, match=f"has left {LEAKS[what]}.*: the operations of the tape have ended"):
        machine.run(tape)
    with pytest.raises(pykmm.PluginError, match="this machine can only be closed"):
        machine.run(tape)
    machine.close()
    assert machine.closed


def test_the_table_of_an_older_plugin_works() -> None:
    """What lies behind its end is never called; also not where a longer table was before, in the same memory."""
    for _ in range(2):
        with pykmm.Machine(strategy=Mistake("bits"), memory="16M"):
            pass
        with pykmm.Machine(strategy=Mistake("older"), memory="16M") as machine:
            mm = machine.mm()
            a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
            mm.store(a, b"x")
            machine.validate()      # quiesce() would be called here


@pytest.mark.parametrize(("what", "message"), [
    ("retry", r"strategy 'mistake': handle_fault on CPU 1, address 0x\w+, returned 0x400, .*fall back to"),
    ("bits", r"returned 0x80000000, which is no result of a fault"),
    ("resolved", r"said 100000 times in a row that the fault is resolved"),
])
def test_what_handle_fault_must_not_return(what: str, message: str) -> None:
    with pykmm.Machine(strategy=Mistake(what), memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x4000, RW, PRIVATE_ANON)
        for access in (lambda: mm.load(a, 1, cpu=1), lambda: mm.store(a, b"x", cpu=1), lambda: mm.touch(a, cpu=1)):
            with pytest.raises(pykmm.PluginError, match=message):
                access()
        mm.munmap(a, 0x4000)
        machine.validate()


def race() -> pykmm.Tape:
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.thread().store(a + 0x1000, b"B")
    tape.thread().load(a, 1)
    return tape


@pytest.mark.parametrize("what", ["retry", "bits", "resolved"])
def test_a_run_ends_with_the_error(what: str) -> None:
    with pykmm.Machine(strategy=Mistake(what), memory="16M") as machine:
        with pytest.raises(pykmm.PluginError, match="strategy 'mistake': handle_fault on CPU"):
            machine.run(race())
        machine.validate()


def test_the_watchdog_takes_the_machine_with_a_compiled_strategy() -> None:
    machine = pykmm.Machine(strategy=Mistake("sleeps"), memory="16M")
    with pytest.raises(pykmm.PluginError, match=r"(?s)strategy 'sleeps': nothing has happened for 0.2 s; CPU 0 is in "
                                                r"operation 1 \(store\).*CPU 1 is in operation 2 \(load\).*given up"):
        machine.run(race(), watchdog=0.2)
    assert machine.closed


@pytest.mark.usefixtures("mistakes")
@pytest.mark.parametrize("explorer", ["dpor", "random"])
def test_the_watchdog_of_the_check_engine(explorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code that never comes to a step: the search ends, and the next one is as good as any."""
    monkeypatch.setenv("PYKMM_WATCHDOG", "0.4")
    stuck = ("strategy 'loops': Cpu 0's store (operation 1) has not come to a step of the engine for 0.4 s: "
             "compiled code loops or sleeps, in strategy_test.loops()")
    with pytest.raises(pykmm.PluginError, match=re.escape(stuck)):
        pykmm.check(race(), strategy="mistake[what=loops]", explorer=explorer, max_executions=3)
    assert pykmm.check(race(), strategy="mistake[what=none]", explorer=explorer, max_executions=3).ok


@pytest.fixture
def mistakes() -> Iterator[None]:
    registry = get_plugin_manager().strategies
    before = dict(registry._entries)
    registry.add("mistake", Mistake, options={"what": MISTAKES})
    yield
    registry._entries = before


@pytest.mark.parametrize(("what", "kind", "message"), [
    ("retry", "assertion", "returned 0x400, which is no result of a fault"),
    ("bits", "assertion", "returned 0x80000000, which is no result of a fault"),
    ("resolved", "livelock", "strategy 'mistake': handle_fault said 1000 times in a row"),
    ("sleeps", "deadlock", "waits for a change of"),
    ("leaks_sem", "lock-held", "locks are still held at the end of the operation; holds mm_struct.mmap_sem"),
    ("leaks_rcu", "lock-held", "still held at the end of the operation; holds rcu_read_lock"),
    ("leaks_srcu", "lock-held", "still held at the end of the operation; holds vma_srcu"),
    ("leaks_irq", "lock-held", "returns with IRQs off"),
])
def test_the_check_engine_says_what_is_wrong(mistakes: None, what: str, kind: str, message: str) -> None:
    report = pykmm.check(race(), strategy=f"mistake[what={what}]", memory_model="sc", max_seconds=60)
    assert [violation.kind for violation in report.violations] == [kind], str(report)
    assert re.search(message, report.violations[0].message), report.violations[0].message


def test_no_mistake_no_finding(mistakes: None) -> None:
    report = pykmm.check(race(), strategy="mistake[what=none]", memory_model="sc")
    assert report.ok, str(report)
    assert report.complete


@pytest.mark.parametrize("name", ["spf-rfc5", "spf-2021", "per_vma_lock", "per_vma_lock-refcount", "lockless_gup"])
def test_options_given_to_the_class_are_those_of_the_name(name: str) -> None:
    entry = get_plugin_manager().strategies.entry(name)
    option, values = next(iter(entry.options.items()))
    assert entry.factory().name == name
    assert entry.factory(**{option: values[-1]}).name == f"{name}[{option}={values[-1]}]"
    with pytest.raises(ValueError, match=f"{name} has no option 'colour'; known: {', '.join(entry.options)}"):
        entry.factory(colour="red")
    with pytest.raises(ValueError, match=f"{name}: {option} is {' or '.join(values)}, not 'red'"):
        entry.factory(**{option: "red"})
