# SPDX-License-Identifier: GPL-2.0-only
"""kernel/lockdep.pyx, kernel/lockdep_graph.pyx: which orders of locks are a possible deadlock, and which are none."""
import itertools
import random

import pytest
from lockdep_locks import COUNTED, SLEEPABLE, Graph, kinds, pairs

from pykmm_ext.kernel.lockdep_report import format_report

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
