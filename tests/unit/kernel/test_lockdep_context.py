# SPDX-License-Identifier: GPL-2.0-only
"""kernel/lockdep.pyx: interrupts, sleeping, grace periods, releases: what a context allows."""

import pytest
from lockdep_locks import SLEEPABLE, Graph, kinds, pairs

# ---- interrupts -------------------------------------------------------------------------------------

def test_class_of_a_handler_held_with_irqs_on(g):
    assert g.chain("A", in_irq=True, irqs_off=True) == []
    (report,) = g.chain("A", cpu=1)
    assert report["kind"] == "irq-inversion"
    (step,) = report["cycle"]
    assert step["interrupt"]
    assert g.chain("A", cpu=1) == []            # once


def test_the_other_way_round(g):
    assert g.chain("A") == []
    assert kinds(g.chain("A", in_irq=True)) == ["irq-inversion"]


def test_class_of_a_handler_held_with_irqs_off_is_fine(g):
    assert g.chain("A", in_irq=True) == []
    assert g.chain("A", irqs_off=True) == []


def test_enabling_irqs_while_a_class_of_a_handler_is_held(g):
    g.chain("A", in_irq=True)
    assert g.take("A", irqs_off=True) is None
    assert g.ld.irqs_on(0)["kind"] == "irq-inversion"


def test_irq_safe_to_irq_unsafe(g):
    assert g.chain("safe", in_irq=True) == []
    assert g.chain("unsafe") == []
    found = [g.take("safe", irqs_off=True), g.take("unsafe", irqs_off=True)]
    (report,) = [report for report in found if report]
    assert report["kind"] == "irq-inversion"
    assert pairs(report) == [("unsafe", "safe"), ("safe", "unsafe")]


def test_a_trylock_in_a_handler_does_not_wait(g):
    assert g.chain("A") == []
    assert g.chain("A", in_irq=True, trylock=True) == []


def test_recursive_reader_in_a_handler(g):
    """rcu_read_lock() in a handler interrupts sections of others; it waits for writers only."""
    assert g.chain("rcu", mode="recursive") == []
    assert g.chain("rcu", mode="recursive", in_irq=True) == []
    assert kinds(g.chain("rcu")) == ["irq-inversion"]


def test_what_a_handler_interrupts_is_no_order(g):
    g.take("A", irqs_off=False)
    assert g.take("B", in_irq=True) is None
    assert g.edges() == {("irqs-off", "B")}
    assert g.take("C", in_irq=True) is None
    assert g.edges() == {("irqs-off", "B"), ("irqs-off", "C"), ("B", "C")}


def test_spinning_with_irqs_off_against_an_ipi(g):
    """A fault that spins for the PTL with IRQs off, and a holder of the PTL who flushes remote TLBs."""
    g.take("ptl")
    assert g.ld.ipi_wait(0, where="flush_tlb_page") is None
    g.give("ptl")
    (report,) = g.chain("ptl", cpu=1, irqs_off=True)
    assert report["kind"] == "cycle"
    assert pairs(report) == [("irqs-off", "ptl"), ("ptl", "irqs-off")]
    other = Graph()
    other.take("ptl")
    assert other.ld.ipi_wait(0) is None
    other.give("ptl")
    assert other.chain("ptl", cpu=1, irqs_off=True, trylock=True) == []


def test_a_handler_that_takes_what_its_sender_holds(g):
    g.take("A", irqs_off=False, trylock=True)
    assert g.ld.ipi_wait(0) is None
    g.give("A")
    assert "cycle" in kinds(g.chain("A", cpu=1, in_irq=True))


@pytest.mark.parametrize("how", [{"irqs_off": True}, {"in_irq": True}])
def test_ipi_wait_with_irqs_off(g, how):
    report = g.ld.ipi_wait(0, **how)
    assert report["kind"] == "ipi-wait"
    assert report["what"] == "smp_call_function_many"
    assert g.ld.ipi_wait(0) is None


# ---- sleeping ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kind", "flags", "mode", "atomic"), [
    ("spinlock", 0, "write", True), ("rwsem", 0, "write", False), ("rwsem", 0, "read", False),
    ("seqcount", 0, "write", True), ("seqcount", SLEEPABLE, "write", False),
    ("rcu", 0, "recursive", True), ("srcu", 0, "recursive", False),
])


def test_sleep_while_held(g, kind, flags, mode, atomic):
    g.cls("held", kind, flags)
    g.take("held", mode=mode)
    report = g.ld.might_sleep(0, where="here")
    assert (report is not None) == atomic
    if atomic:
        assert report["kind"] == report["violation"] == "sleep-in-atomic"
        assert report["what"] == "something"
        assert ("RCU" in report["message"]) == (kind == "rcu")
    assert g.ld.might_sleep(1) is None
    g.give("held")
    assert g.ld.might_sleep(0) is None


@pytest.mark.parametrize("how", ["irqs_off", "in_irq"])
def test_sleep_in_context(g, how):
    assert g.ld.might_sleep(0, **{how: True})["kind"] == "sleep-in-atomic"


def test_sleep_is_reported_every_time(g):
    g.take("A")
    assert g.ld.might_sleep(0)
    assert g.ld.might_sleep(0)


# ---- grace periods ----------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["rcu", "srcu"])
def test_grace_period_in_own_section(g, kind):
    cls = g.cls("domain", kind)
    g.take("domain", mode="recursive")
    report = g.ld.sync(0, g.address("domain"), cls)
    assert report["kind"] == "self-deadlock"
    assert "grace period" in report["message"]


def test_grace_period_under_a_lock_that_sections_take(g):
    srcu = g.cls("srcu", "srcu")
    g.cls("mutex", "rwsem")
    g.take("srcu", mode="recursive")
    g.take("mutex")
    g.give("mutex")
    g.give("srcu")
    g.take("mutex", 1)
    report = g.ld.sync(1, g.address("srcu"), srcu, where="synchronize_srcu")
    assert pairs(report) == [("mutex", "srcu"), ("srcu", "mutex")]
    assert report["cycle"][0]["taken_where"] == "synchronize_srcu"


def test_what_must_be_held(g):
    g.cls("rcu", "rcu")
    g.cls("srcu", "srcu")
    assert g.ld.rcu_held(0)["violation"] == "rcu-not-held"
    assert g.ld.srcu_held(0, g.address("srcu"))["kind"] == "srcu-not-held"
    assert g.ld.assert_held(0, g.address("A"))["kind"] == "lock-not-held"
    for name, mode in (("rcu", "recursive"), ("srcu", "recursive"), ("A", "write")):
        g.take(name, mode=mode)
    assert g.ld.rcu_held(0) is None
    assert g.ld.srcu_held(0, g.address("srcu")) is None
    assert g.ld.srcu_held(0, g.address("srcu", 1)) is not None     # another domain
    assert g.ld.assert_held(0, g.address("A"), "write") is None
    assert g.ld.rcu_held(1) is not None


# ---- releases ---------------------------------------------------------------------------------------

def test_release_of_what_is_not_held(g):
    report = g.give("A")
    assert report["kind"] == "bad-unlock"
    assert "holds none" in report["message"]
    g.take("A")
    assert g.give("A", which=1)["kind"] == "bad-unlock"
    assert g.give("A", cpu=1)["kind"] == "bad-unlock"
    assert g.give("A") is None
    assert g.give("A") is not None


def test_held_at_the_end(g):
    assert g.ld.exit_check(0) is None
    g.take("A")
    report = g.ld.exit_check(0)
    assert report["kind"] == "held-at-exit"
    assert [lock["name"] for lock in report["held"]] == ["A"]
    assert g.ld.exit_check(1) is None
