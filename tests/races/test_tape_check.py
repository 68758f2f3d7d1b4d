# SPDX-License-Identifier: GPL-2.0-only
"""pykmm_ext/engine/check_tape.pyx, tape_shadow.pyx: tapes on virtual CPUs, and what is noticed there."""
from __future__ import annotations

from typing import Any

import pytest
from arch_under_test import ARCH, PAGE, frames, make_arch

import pykmm
from pykmm.checking import program
from pykmm.plugin import get_plugin_manager
from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.check_tape import TapeCheck
from pykmm_ext.engine.check_tape_test import BrokenArch, BrokenStrategy

MODEL = str(make_arch().memory_model)


def make_program(tape: pykmm.Tape, strategy: Any = "spf", arch: Any = ARCH, *, memory: str = "4M",
                 **options: Any) -> TapeCheck:
    return program.make_program(tape, strategy, arch, memory=frames(memory), **options)


def fault_munmap() -> pykmm.Tape:
    t = pykmm.Tape()
    a = t.setup.mmap(2 * PAGE)
    t.setup.store(a, b"A")
    t.thread().store(a + PAGE, b"B")
    t.thread().munmap(a + PAGE, PAGE, expect_errno=0)
    t.final.load(a, 1, expect=b"A")
    t.final.load(a + PAGE, 1, expect_errno="EFAULT")
    return t


def explore(made: TapeCheck, **options: object) -> Exploration:
    e = Exploration(made, **options)  # type: ignore[arg-type]
    e.run(max_executions=200_000)
    return e


def kinds(e: Exploration) -> set[str]:
    return {violation[0] for violation in e.violations}


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "spf-2021"])
@pytest.mark.parametrize("model", ["sc", MODEL])
def test_fault_against_munmap_is_exhausted(strategy: str, model: str) -> None:
    e = explore(make_program(fault_munmap(), strategy), memory_model=model, graphs=True)
    assert e.complete, e.violations
    assert not e.violations
    assert e.redundant == 0
    assert e.fallbacks == 0
    assert len(e.outcomes) == 2             # the store came first, or it fails


def test_same_again() -> None:
    """Executions depend on nothing but the program."""
    first = explore(make_program(fault_munmap(), "spf"), memory_model=MODEL)
    second = explore(make_program(fault_munmap(), "spf"), memory_model=MODEL)
    assert (first.executions, first.blocked, first.steps) == (second.executions, second.blocked, second.steps)


def test_reduced_search_has_the_outcomes_of_random_ones() -> None:
    made = make_program(fault_munmap(), "spf")
    assert explore(made, memory_model=MODEL).outcomes.keys() == at_random(made).outcomes.keys()


def at_random(made: TapeCheck) -> Exploration:
    e = Exploration(made, memory_model=MODEL, explorer="random", seed=3)
    e.run(max_executions=3000)
    assert not e.violations
    return e


def test_waits_and_children() -> None:
    t = pykmm.Tape()
    a = t.setup.mmap(PAGE)
    t.setup.store(a, b"A")
    x = t.thread()
    x.store(a, b"B")
    child = x.fork()
    child.load(a, 1, expect=b"B")
    child.store(a, b"C")
    child.exit()
    x.load(a, 1, expect=b"B")
    for strategy in ("mmap_sem", "spf", "spf-2021"):
        e = explore(make_program(t, strategy), memory_model=MODEL)
        assert e.complete, e.violations
        assert not e.violations


def test_expectations() -> None:
    t = fault_munmap()
    t.final.load(t.setup.mmap(PAGE), 1, expect=b"x")
    assert kinds(explore(make_program(t, "mmap_sem"))) == {"wrong-value"}
    t = fault_munmap()
    t.final.munmap(1, 1, expect_errno=0)
    assert kinds(explore(make_program(t, "mmap_sem"))) == {"assertion"}


@pytest.mark.parametrize(("mistake", "kind"), [
    ("null", "crash"), ("poison", "use-after-free"), ("lock", "lock-held"), ("irq", "lock-held"), ("leak", "leak"),
    ("lost", "leak"),
])
def test_mistakes_of_a_strategy(mistake: str, kind: str) -> None:
    base = get_plugin_manager().strategies.make("mmap_sem")
    assert not explore(make_program(fault_munmap(), base)).violations
    found = kinds(explore(make_program(fault_munmap(), BrokenStrategy(base, mistake))))
    assert found == {kind} or (mistake in ("lock", "irq") and found & {kind, "deadlock", "sleep-in-atomic"})


def warm_then(operation: str) -> pykmm.Tape:
    """One thread has used a page before; another takes it away; both may go on."""
    t = pykmm.Tape()
    a = t.setup.mmap(2 * PAGE)
    t.setup.store(a, b"A")
    x = t.thread()
    x.store(a, b"B")
    take_away(t.thread(), operation, a)
    return t


def take_away(thread: Any, operation: str, a: Any) -> None:
    if operation == "munmap":
        thread.munmap(a, PAGE)
    elif operation == "mprotect":
        thread.mprotect(a, PAGE, "r")
    elif operation == "dontneed":
        thread.madvise(a, PAGE, "DONTNEED")
    else:
        thread.fork()


@pytest.mark.parametrize("model", ["sc", MODEL])
@pytest.mark.parametrize("operation", ["munmap", "mprotect", "dontneed", "fork"])
def test_stale_translations(operation: str, model: str) -> None:
    for strategy in ("mmap_sem", "spf", "spf-2021"):
        e = explore(make_program(warm_then(operation), strategy), memory_model=model)
        assert e.complete, e.violations
        assert not e.violations
        arch = BrokenArch(make_arch())
        found = kinds(explore(make_program(warm_then(operation), strategy, arch), memory_model=model))
        assert found <= {"stale-tlb", "use-after-free"}
        assert found


@pytest.mark.parametrize("model", ["sc", MODEL])
@pytest.mark.parametrize("operation", ["munmap", "mprotect", "dontneed", "fork"])
def test_what_final_takes_away_was_used_before(operation: str, model: str) -> None:
    t = pykmm.Tape()
    a = t.setup.mmap(PAGE)
    for thread in (t.thread(), t.thread()):
        thread.store(a, b"B")
    take_away(t.final, operation, a)
    e = explore(make_program(t, "spf"), memory_model=model)
    assert not e.violations
    assert e.complete


@pytest.mark.parametrize("operation", ["munmap", "mprotect", "dontneed"])
def test_a_stale_translation_that_final_uses(operation: str) -> None:
    """Cpu 0's last step is before those of the call: the threads alone could have had the access first."""
    t = pykmm.Tape()
    a = t.setup.mmap(2 * PAGE)
    t.setup.store(a, b"A")
    t.thread().store(a, b"B")
    y = t.thread()
    y.load(a + PAGE, 1)
    take_away(y, operation, a)
    t.final.store(a, b"C")
    assert not kinds(explore(make_program(t, "spf")))
    found = kinds(explore(make_program(t, "spf", BrokenArch(make_arch()))))
    assert found & {"stale-tlb", "use-after-free"}


@pytest.mark.parametrize("model", ["sc", MODEL])
def test_stores_and_loads_of_three_threads(model: str) -> None:
    t = pykmm.Tape()
    a = t.setup.mmap(PAGE)
    t.setup.store(a, b"A")
    for value in (b"B", b"C"):
        t.thread().store(a, value)
    x = t.thread()
    x.load(a, 1)
    x.load(a, 1)
    e = explore(make_program(t, "mmap_sem"), memory_model=model)
    assert e.complete, e.violations
    assert not e.violations


def test_a_lost_write_is_found_by_sampling() -> None:
    """Fork without a write section: a speculative fault copies a page that another thread still stores to."""
    from pykmm.checking import scenario

    one = scenario.get("spf-fork-cow")
    assert one.buggy is not None
    found = {}
    for config in (one.fixed, one.buggy):
        e = Exploration(make_program(one.tape(PAGE), config.strategy, quirks=config.quirks), explorer="pct", seed=1)
        e.run(max_executions=20_000)
        found[config] = kinds(e)
    assert found[one.fixed] == set()
    assert found[one.buggy] & {"wrong-value", "stale-tlb"}


def test_three_threads_within_a_bound() -> None:
    t = pykmm.Tape()
    a = t.setup.mmap(2 * PAGE)
    t.setup.store(a, b"A")
    t.thread().store(a + PAGE, b"B")
    t.thread().load(a, 1)
    t.thread().munmap(a, 2 * PAGE, expect_errno=0)
    e = Exploration(make_program(t, "spf"), preemptions=1)
    e.run(max_executions=100_000)
    assert e.finished
    assert not e.violations


def test_impossible_programs() -> None:
    with pytest.raises(ValueError, match="quirk"):
        make_program(fault_munmap(), quirks=("no-such",))
    with pytest.raises(ValueError, match="2 CPUs"):
        make_program(fault_munmap(), cpus=1)
    big = pykmm.Tape()
    b = big.setup.mmap(4096 * PAGE)
    big.setup.touch(b, 4096 * PAGE)
    with pytest.raises(MemoryError):
        make_program(big, memory="1M")


def test_names() -> None:
    e = Exploration(make_program(fault_munmap()), explorer="replay")
    names = {step["object"] for step in e.replay(())}
    assert "mm_struct 0.1 mmap_sem" in names
    assert any(name.startswith("vm_area_struct") for name in names)
