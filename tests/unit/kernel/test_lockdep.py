# SPDX-License-Identifier: GPL-2.0-only
"""kernel/lockdep.pyx: what is a possible deadlock and what is none, by graph and by context; and the reports' text."""
import itertools
import json
import random

import pytest

from pykmm_ext.kernel.lockdep_report import format_report
from pykmm_ext.kernel.lockdep_test import Lockdep, one_line

SLEEPABLE = 1
COUNTED = 2


class Graph:
    """Locks by name, one object a class unless an address is given."""

    def __init__(self, **limits: int) -> None:
        self.ld = Lockdep(**limits)
        self.classes: dict[str, int] = {}

    def cls(self, name: str, kind: str = "spinlock", flags: int = 0) -> int:
        if name not in self.classes:
            self.classes[name] = self.ld.lock_class(name, kind, flags)
        return self.classes[name]

    def address(self, name: str, which: int = 0) -> int:
        return 0x1000 * (1 + self.cls(name)) + which

    def take(self, name, cpu=0, which=0, **how):
        how.setdefault("where", f"take {name}")
        return self.ld.acquire(cpu, self.address(name, which), self.cls(name), **how)

    def give(self, name, cpu=0, which=0):
        return self.ld.release(cpu, self.address(name, which))

    def chain(self, *names, cpu=0, **how):
        """Take them in order and release them; the reports."""
        found = [self.take(name, cpu, **how) for name in names]
        found += [self.give(name, cpu) for name in reversed(names)]
        return [report for report in found if report]

    def edges(self):
        graph = self.ld.graph()
        names = [graph["classes"][cls][0] for cls, _, _ in graph["nodes"]]
        return {(names[edge["held"]], names[edge["taken"]]) for edge in graph["edges"]}


@pytest.fixture
def g():
    return Graph()


def kinds(reports):
    return [report["kind"] for report in reports]


def pairs(report):
    return [(step["held"], step["taken"]) for step in report["cycle"]]


# ---- order ------------------------------------------------------------------------------------------

def test_one_order_is_fine(g):
    for cpu in (0, 1):
        assert g.chain("A", "B", "C", cpu=cpu) == []
        assert g.chain("A", "C", cpu=cpu) == []
    assert g.chain("B", "C") == []


def test_abba(g):
    assert g.chain("A", "B") == []
    (report,) = g.chain("B", "A", cpu=1)
    assert report["kind"] == "cycle"
    assert report["violation"] == "lock-order"
    assert pairs(report) == [("B", "A"), ("A", "B")]
    assert [step["cpu"] for step in report["cycle"]] == [1, 0]
    assert report["cycle"][0]["held_where"] == "take B"
    assert report["cycle"][0]["taken_where"] == "take A"
    assert report["what"] == "A"
    assert [lock["name"] for lock in report["held"]] == ["B"]


@pytest.mark.parametrize("length", [3, 4, 7])
def test_longer_cycles(g, length):
    names = [f"L{i}" for i in range(length)]
    for first, second in itertools.pairwise(names):
        assert g.chain(first, second) == []
    (report,) = g.chain(names[-1], names[0], cpu=1)
    assert pairs(report) == [(names[-1], names[0]), *itertools.pairwise(names)]


def test_an_order_is_reported_where_it_was_closed(g):
    g.chain("A", "B")
    (first,) = g.chain("B", "A")
    (again,) = g.chain("B", "A")
    assert first["kind"] == again["kind"] == "cycle"
    assert pairs(first) == pairs(again)
    assert g.chain("A", "B") == []


def test_the_graph_outlives_an_execution(g):
    g.ld.reset_held()
    assert g.chain("A", "B") == []
    g.ld.reset_held()
    g.ld.reset_held()
    (report,) = g.chain("B", "A")
    assert [step["execution"] for step in report["cycle"]] == [3, 1]
    assert report["execution"] == 3
    g.ld.reset()
    g.classes.clear()
    assert g.chain("A", "B") == []


def test_held_locks_do_not_outlive_an_execution(g):
    g.take("A")
    g.ld.reset_held()
    assert g.ld.exit_check(0) is None
    assert g.take("A") is None


def test_a_trylock_waits_for_nobody(g):
    g.chain("A", "B")
    g.take("B")
    assert g.take("A", trylock=True) is None
    # But it holds: what is asked for inside it is ordered after it.
    assert g.take("C") is None
    for name in "CAB":
        g.give(name)
    (report,) = g.chain("C", "A")
    assert pairs(report)[0] == ("C", "A")


def test_locks_of_other_cpus_do_not_count(g):
    g.take("A", 0)
    assert g.take("B", 1) is None
    assert g.take("A", 1) is None
    assert g.edges() == {("B", "A")}


def test_release_out_of_order(g):
    g.take("A")
    g.take("B")
    g.give("A")
    g.take("C")
    g.give("B")
    g.give("C")
    assert g.edges() == {("A", "B"), ("B", "C")}     # never A then C
    (report,) = g.chain("C", "A")                    # but through B
    assert pairs(report) == [("C", "A"), ("A", "B"), ("B", "C")]


def test_a_sequence_after_a_release_is_another_one(g):
    g.take("A")
    g.take("B")
    g.give("A")
    g.take("C")                             # B, C
    g.give("B")
    g.give("C")
    assert g.chain("A", "B", "C") == []     # is looked at, though A, B and C were taken in this order before
    assert ("A", "C") in g.edges()


# ---- readers ----------------------------------------------------------------------------------------

MODES = ["write", "read", "recursive"]


def waits(asks: str, holds: str) -> bool:
    """Does a request wait for a holder? Shared readers are fair: they may stand behind a writer."""
    return not (asks == "recursive" and holds != "write")


@pytest.mark.parametrize(("a1", "b1", "b2", "a2"), list(itertools.product(MODES, repeat=4)))
def test_two_classes_in_every_mode(a1, b1, b2, a2):
    """A then B here, B then A there: a deadlock when each request waits for the other's holder."""
    g = Graph()
    g.take("A", mode=a1)
    g.take("B", mode=b1)
    g.give("B")
    g.give("A")
    g.take("B", 1, mode=b2)
    report = g.take("A", 1, mode=a2)
    assert (report is not None) == (waits(b1, b2) and waits(a2, a1))


def brute_force(edges, length):
    """Is there a strong cycle: no recursive request for what a reader holds?"""
    paths = [[edge] for edge in edges]
    for _ in range(length):
        for path in paths:
            if path[0][0] == path[-1][1] and not (path[-1][3] and path[0][2]):
                return True
        paths = [[*path, edge] for path in paths for edge in edges
                 if edge[0] == path[-1][1] and not (path[-1][3] and edge[2]) and edge not in path]
    return False


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_agree_with_brute_force(seed):
    rng = random.Random(seed)
    g = Graph()
    edges = set()
    reported = False
    for _ in range(7):
        held, taken = rng.sample("ABCD", 2)
        how_held, how_taken = rng.choice(MODES), rng.choice(MODES)
        g.take(held, mode=how_held)
        reported |= g.take(taken, mode=how_taken) is not None
        g.give(taken)
        g.give(held)
        edges.add((held, taken, how_held != "write", how_taken == "recursive"))
        assert reported == brute_force(sorted(edges), 8)


def test_readers_of_one_class_nest_if_recursive(g):
    g.take("R", mode="recursive")
    assert g.take("R", mode="recursive") is None
    g.ld.reset_held()
    g.take("R", mode="read")
    assert g.take("R", mode="read")["kind"] == "self-deadlock"
    g.ld.reset_held()
    g.take("R", mode="recursive")
    assert g.take("R")["kind"] == "self-deadlock"


def test_downgrade(g):
    g.cls("sem", "rwsem")
    g.take("sem")
    assert g.ld.assert_held(0, g.address("sem"), "write") is None
    assert g.ld.downgrade(0, g.address("sem")) is None
    assert g.ld.assert_held(0, g.address("sem"), "write")["kind"] == "lock-not-held"
    assert g.ld.assert_held(0, g.address("sem")) is None
    assert g.ld.downgrade(0, g.address("sem"))["kind"] == "bad-unlock"


def test_a_downgraded_lock_is_a_readers(g):
    g.take("sem")
    g.ld.downgrade(0, g.address("sem"))
    g.take("L")
    g.ld.reset_held()
    g.take("L", 1)
    assert g.take("sem", 1, mode="recursive") is None       # waits for writers only
    g.ld.reset_held()
    g.take("sem")
    assert g.take("L")["kind"] == "cycle"                   # now a writer holds it


# ---- one class within itself ------------------------------------------------------------------------

def test_self_deadlock(g):
    g.take("A")
    report = g.take("A")
    assert report["kind"] == "self-deadlock"
    assert "holds already" in report["message"]
    g.ld.reset_held()
    g.take("A")
    assert "without a nesting subclass" in g.take("A", which=1)["message"]
    g.ld.reset_held()
    g.take("A")
    assert g.take("A", which=1, trylock=True) is None


def test_nesting_subclasses(g):
    assert g.take("A") is None
    assert g.take("A", which=1, subclass=1) is None
    g.give("A", which=1)
    g.ld.nested(0, g.address("A", 2), 2)
    assert g.take("B") is None               # is not the one that was named
    assert g.take("A", which=2) is None
    g.ld.reset_held()
    g.take("A", subclass=1)
    report = g.take("A", which=1)
    assert report["kind"] == "cycle"         # subclasses have an order like classes
    assert pairs(report) == [("A/1", "A"), ("A", "A/1")]


# ---- sequence counts --------------------------------------------------------------------------------

def test_vm_sequence_against_mapping_lock(g):
    """The order that __vma_adjust() and truncation do not agree on."""
    g.cls("vm_sequence", "seqcount", SLEEPABLE)
    g.cls("i_mmap_rwsem", "rwsem")
    assert g.chain("vm_sequence", "i_mmap_rwsem") == []
    (report,) = g.chain("i_mmap_rwsem", "vm_sequence", cpu=1)
    assert pairs(report) == [("i_mmap_rwsem", "vm_sequence"), ("vm_sequence", "i_mmap_rwsem")]


def test_read_in_own_write_section(g):
    """mprotect() that populates inside its section: its fault waits for itself."""
    seq = g.cls("vm_sequence", "seqcount", SLEEPABLE)
    g.take("vm_sequence")
    report = g.ld.sync(0, g.address("vm_sequence"), seq, "recursive", where="fault")
    assert report["kind"] == "self-deadlock"
    assert "its own write section" in report["message"]
    assert report["where"] == "fault"
    other = g.ld.sync(0, g.address("vm_sequence", 1), seq, "recursive")
    assert "the same class" in other["message"]


def test_reader_that_waits_for_a_section(g):
    seq = g.cls("seq", "seqcount")
    g.chain("seq", "lock")
    g.take("lock", 1)
    report = g.ld.sync(1, g.address("seq"), seq, "recursive")
    assert pairs(report) == [("lock", "seq"), ("seq", "lock")]


def test_readers_alone_are_no_cycle(g):
    seq = g.cls("seq", "seqcount")
    for name in ("A", "B"):
        g.take(name)
        assert g.ld.sync(0, g.address("seq"), seq, "recursive") is None
        g.give(name)


def test_sections_that_are_counted(g):
    """Writers who do not exclude each other are no lock to each other, but to a reader who waits."""
    seq = g.cls("vm_sequence", "seqcount", SLEEPABLE | COUNTED)
    for which in range(100):                   # more than a CPU can hold
        assert g.take("vm_sequence", which=which, mode="recursive") is None
    assert g.take("rwsem") is None
    assert g.give("rwsem") is None
    for which in range(100):
        assert g.ld.release(0, g.address("vm_sequence", which), counted=seq) is None
    assert g.ld.release(0, g.address("vm_sequence"), counted=seq)["kind"] == "bad-unlock"
    g.take("rwsem", 1)
    assert g.take("vm_sequence", 1, mode="recursive") is None
    g.ld.reset_held()
    g.take("rwsem", 1)
    assert g.ld.sync(1, g.address("vm_sequence"), seq, "recursive")["kind"] == "cycle"


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


@pytest.mark.parametrize("how", ["irqs_off", "preempt_off", "in_irq"])
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


# ---- limits -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("limits", "word"), [
    ({"max_nodes": 4}, "classes"), ({"max_edges": 5}, "edges"), ({"max_held": 3}, "holds too many"),
])
def test_a_full_table_is_reported_and_ends_it(limits, word):
    g = Graph(**limits)
    reports = [g.take(f"L{i}") for i in range(10)]
    (report,) = [report for report in reports if report]
    assert report["kind"] == "capacity"
    assert word in report["message"]
    assert not g.ld.enabled
    assert g.give("nothing") is None
    assert g.ld.might_sleep(0, irqs_off=True) is None
    g.ld.reset()
    assert g.ld.enabled


def test_too_many_class_names(g):
    assert [g.ld.lock_class(f"C{i}") for i in range(128)][-2:] == [127, -1]
    assert g.ld.lock_class("C5") == 6          # idempotent; number 0 is "irqs-off"
    assert g.ld.acquire(0, 1, -1)["kind"] == "capacity"


def test_the_longest_path_is_found(g):
    names = [f"L{i}" for i in range(60)]
    for first, second in itertools.pairwise(names):
        assert g.chain(first, second) == []
    (report,) = g.chain(names[-1], names[0])
    assert report["truncated"]
    assert len(report["cycle"]) == 32
    assert "longer" in format_report(report)


def test_more_sequences_than_are_remembered(g):
    rng = random.Random(1)
    for _ in range(30_000):
        names = sorted(rng.sample(range(24), 5))
        assert g.chain(*(f"L{i}" for i in names)) == []
    assert g.ld.searched < 16384
    assert kinds(g.chain("L9", "L3")) == ["cycle"]


def test_a_known_sequence_is_not_searched_again(g):
    g.chain("A", "B", "C")
    searched = g.ld.searched
    for _ in range(5):
        g.ld.reset_held()
        g.chain("A", "B", "C", cpu=1)
    assert g.ld.searched == searched


# ---- reports and graphs -----------------------------------------------------------------------------

def test_text_and_json(g):
    g.cls("vm_sequence", "seqcount", SLEEPABLE)
    g.take("vm_sequence", where="__vma_adjust")
    g.take("i_mmap", where="vma_link")
    g.ld.reset_held()
    g.take("i_mmap", 1, where="unmap_mapping_range")
    report = json.loads(json.dumps(g.take("vm_sequence", 1, where="zap")))
    assert format_report(report) == """\
lock-order: the order of these locks is a cycle: possible deadlock
  CPU 1, execution 1, at zap: vm_sequence
  the cycle, first the edge that closed it:
    1. i_mmap      -> vm_sequence
       held since unmap_mapping_range, asked for at zap; CPU 1, execution 1
    2. vm_sequence -> i_mmap
       held since __vma_adjust, asked for at vma_link; CPU 0, execution 0
  CPU 1 holds, oldest first:
    i_mmap (write) since unmap_mapping_range"""


def test_text_of_an_inversion(g):
    g.chain("A", in_irq=True, irqs_off=True)
    (report,) = g.chain("A", cpu=1)
    text = format_report(report)
    assert "A =irq=> A" in text
    assert "handler at take A" in text
    assert "holds no lock" in text


def test_text_of_readers(g):
    g.chain("A", "B", mode="read")
    (report,) = g.chain("B", "A", mode="read", cpu=1)
    assert format_report(report).count("(held for reading)") == 2


def test_one_line(g):
    g.chain("A", "B")
    g.take("B", 1, subclass=0)
    report = g.take("A", 1)
    kind, text = one_line(g.ld)
    assert kind == report["violation"]
    assert text == f"Cpu 1: {report['message']}: B -> A (Cpu 1, take A); A -> B (Cpu 0, take B)"
    report = g.ld.might_sleep(1)
    assert one_line(g.ld) == (report["violation"], f"Cpu 1: {report['message']}: something; holds B, A")
    assert one_line(g.ld, 10)[1] == "Cpu 1: ma"
    assert one_line(g.ld, 1)[1] == ""


@pytest.mark.parametrize("what", ["self", "irq", "ipi", "sleep", "unlock", "exit", "rcu", "srcu", "held", "capacity"])
def test_one_line_has_the_kind_of_the_dict(what):
    g = Graph(max_held=3)
    g.take("A")
    report = {
        "self": lambda: g.take("A"), "irq": lambda: g.take("A", 1, in_irq=True), "ipi": lambda: g.ld.ipi_wait(0, True),
        "sleep": lambda: g.ld.might_sleep(0), "unlock": lambda: g.give("B"), "exit": lambda: g.ld.exit_check(0),
        "rcu": lambda: g.ld.rcu_held(0), "srcu": lambda: g.ld.srcu_held(0, 1), "held": lambda: g.ld.assert_held(0, 1),
        "capacity": lambda: [g.take(name) for name in "BCD"][-1],
    }[what]()
    kind, text = one_line(g.ld)
    assert kind == report["violation"]
    assert report["message"] in text
    assert report["message"] in format_report(report)


def test_graphs_of_two_processes(g):
    other = Graph()
    other.cls("unrelated")                      # numbers differ
    assert g.chain("A", "B") == []
    assert other.chain("B", "A", cpu=1) == []
    graph = json.loads(json.dumps(other.ld.graph()))
    (report,) = g.ld.merge(graph)
    assert report["kind"] == "cycle"
    assert pairs(report) == [("B", "A"), ("A", "B")]
    assert [step["cpu"] for step in report["cycle"]] == [1, 0]
    assert g.ld.merge(graph) == []
    assert kinds(g.chain("B", "A")) == ["cycle"]


def test_merged_irq_usage(g):
    other = Graph()
    g.chain("A")
    other.chain("A", in_irq=True)
    assert kinds(g.ld.merge(other.ld.graph())) == ["irq-inversion"]
    assert Graph().ld.merge(Graph().ld.graph()) == []


def test_merge_refuses_what_is_no_graph(g):
    with pytest.raises(ValueError, match="subclass"):
        g.ld.merge({"classes": [["A", 0, 0]], "nodes": [[0, 99, {}]], "edges": []})
