# SPDX-License-Identifier: GPL-2.0-only
"""Every barrier, re-check and lock of the primitives and of pte_map_lock(), taken away: some program notices."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from pykmm import Tape
from pykmm.checking.program import make_program
from pykmm.checking.scenario import get
from pykmm_ext.engine.check import Exploration
from pykmm_ext.kernel.primitives_check import Primitives
from pykmm_plugins.scenarios import races

ALL = 2 ** 64 - 1
LOCKS = ("spinlock", "rwsem")


@dataclass(frozen=True)
class Mutant:
    """What is missing, the program that is to notice it, and what it says."""

    name: str
    scenario: str
    roles: tuple[str, ...]
    model: str
    kind: str                       #: of the violation; "" = none: it is implied by something else, or not about safety
    executions: int                 #: that are enough to find it; 0 = all
    mutant: int = -1                #: Primitives(mutant=...)
    weaken: tuple[str, ...] = ()
    which: int = ALL
    options: dict[str, Any] = field(default_factory=dict)

    def search(self, intact: bool = False) -> Exploration:
        mutant = min(self.mutant, 0) if intact else self.mutant
        return Exploration(Primitives(self.scenario, self.roles, mutant=mutant), memory_model=self.model,
                           weaken=() if intact else self.weaken, weaken_which=self.which, **self.options)


UAF, LOST, HUNG, BROKEN = "use-after-free", "assertion", "deadlock", "broken-structure"

SEQLOCK = (
    Mutant("wmb of write_seqcount_begin", "seqlock", ("w", "r"), "pso", LOST, 100, weaken=("wmb",), which=1),
    Mutant("wmb of write_seqcount_end", "seqlock", ("w", "r"), "power", LOST, 100, weaken=("wmb",), which=2),
    Mutant("rmb of read_seqcount_begin", "seqlock", ("w", "r"), "power", LOST, 100, weaken=("rmb",), which=1),
    Mutant("rmb of read_seqcount_retry", "seqlock", ("w", "r"), "power", LOST, 100, weaken=("rmb",), which=2),
    Mutant("lock of writers", "seqlock", ("w", "w"), "sc", LOST, 100, weaken=("spinlock",)),
)

RCU = (
    Mutant("light barrier of rcu_read_lock", "rcu", ("u", "r"), "tso", UAF, 100, weaken=("mb_light",)),
    Mutant("release of rcu_read_unlock", "rcu", ("u", "r"), "power", UAF, 100, weaken=("release",), which=1),
    Mutant("barrier of synchronize_rcu", "rcu", ("u", "ss", "r"), "tso", UAF, 1000, weaken=("mb",)),
    Mutant("heavy barrier", "rcu", ("u", "r"), "tso", UAF, 100, weaken=("mb_heavy",)),
    # The lock of the list of callbacks, taken behind the scan, orders what the acquire does.
    Mutant("acquire of the scan, locks there", "rcu", ("u", "m"), "power", "", 0, weaken=("acquire",)),
    Mutant("locks, one updater", "rcu", ("u", "m"), "power", "", 0, weaken=LOCKS),
    Mutant("... and the acquire of the scan", "rcu", ("u", "m"), "power", LOST, 100, weaken=(*LOCKS, "acquire")),
)

SRCU = (
    Mutant("light barrier of srcu_read_lock", "srcu", ("u", "r"), "tso", UAF, 100, weaken=("mb_light",)),
    Mutant("release of srcu_read_unlock", "srcu", ("u", "r"), "power", UAF, 100, weaken=("release",), which=1),
    Mutant("acquire of the scan", "srcu", ("u", "r"), "power", HUNG, 100, weaken=("acquire",)),
    Mutant("barrier of synchronize_srcu", "srcu", ("u", "ss", "r"), "tso", UAF, 2000, weaken=("mb",)),
    Mutant("heavy barrier", "srcu", ("u", "r"), "tso", UAF, 100, weaken=("mb_heavy",)),
    # gp_mutex protects plain fields, which are no steps: only a search without reduction sees two owners.
    Mutant("gp_mutex", "srcu", ("u", "s", "r"), "sc", UAF, 50_000, weaken=("rwsem",),
           options={"explorer": "dfs", "preemptions": 2}),
    Mutant("the flip", "srcu", ("u", "r"), "tso", UAF, 100, mutant=1),
    Mutant("a grace period under way does not count", "srcu", ("u", "s", "r"), "tso", UAF, 1000, mutant=2),
    Mutant("the wait before the flip", "srcu", ("uu", "r"), "tso", UAF, 100, mutant=3),
    Mutant("the wait behind the flip", "srcu", ("u", "r"), "tso", UAF, 100, mutant=4),
)

RWSEM = (
    Mutant("wait_lock", "rwsem", ("w", "w"), "sc", HUNG, 100, weaken=("spinlock",)),
    Mutant("waker: is it free, for a writer", "rwsem", ("w", "w"), "sc", HUNG, 100, mutant=1),
    Mutant("waker: is there a writer, for readers", "rwsem", ("w", "w", "r"), "sc", LOST, 1000, mutant=2),
    Mutant("reader: the flag of waiters", "rwsem", ("w", "r"), "sc", HUNG, 100, mutant=5),
    Mutant("reader: free behind the flag", "rwsem", ("w", "w", "r"), "sc", HUNG, 1000, mutant=6),
    Mutant("writer: the flag of waiters", "rwsem", ("w", "w"), "sc", HUNG, 100, mutant=8),
    Mutant("writer: free behind the flag", "rwsem", ("w", "w"), "sc", HUNG, 100, mutant=9),
    Mutant("writer: handed over on the way", "rwsem", ("ww", "w", "w"), "sc", HUNG, 50_000, mutant=4),
    Mutant("up_read: waiters", "rwsem", ("w", "r"), "sc", HUNG, 100, mutant=13),
    Mutant("down_read_trylock: waiters", "rwsem", ("w", "w", "t"), "sc", HUNG, 1000, mutant=17),
    Mutant("up_write: waiters", "rwsem", ("w", "w"), "sc", HUNG, 100, mutant=14),
    Mutant("downgrade_write: waiters", "rwsem", ("D", "R"), "sc", HUNG, 100, mutant=15),
    Mutant("waker: the writer's cmpxchg", "rwsem", ("w", "w", "r"), "sc", HUNG, 1000, mutant=16),
    Mutant("writer: the spinning cmpxchg", "rwsem", ("w", "w"), "sc", LOST, 100, mutant=12),
    Mutant("waker: the readers' cmpxchg", "rwsem", ("w", "w", "r"), "sc", LOST, 5000, mutant=11),
    Mutant("reader: downgraded before the flag", "rwsem", ("D", "R"), "sc", HUNG, 100, mutant=10),
    # The hand-off bounds how often a waiter is overtaken.
    Mutant("spinning writer: hand-off", "rwsem", ("ww", "b", "h"), "sc", LOST, 50_000, mutant=7,
           options={"preemptions": 3}),
    Mutant("overtaken writer: hand-off", "rwsem", ("wwww", "b"), "sc", LOST, 1000, mutant=3),
)

RBTREE = (
    Mutant("release of rb_link_node", "rbtree", ("i", "n"), "pso", BROKEN, 100, weaken=("release",)),
    Mutant("address dependency of a descent", "rbtree", ("i", "n"), "power", BROKEN, 100, weaken=("dependency",)),
)

TABLE = (*SEQLOCK, *RCU, *SRCU, *RWSEM, *RBTREE)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case.scenario}: {case.name}")
def test_mutant(case: Mutant) -> None:
    search = case.search()
    search.run(case.executions)
    if case.kind:
        assert [violation[0] for violation in search.violations] == [case.kind]
    else:
        assert not search.violations
        assert search.complete


@pytest.mark.parametrize("case", [case for case in TABLE if case.kind],
                         ids=lambda case: f"{case.scenario}: {case.name}")
def test_intact(case: Mutant) -> None:
    search = case.search(intact=True)
    search.run(60_000)
    assert not search.violations


def locks_missing(*kinds: str) -> set[str]:
    """Kinds of violations that the increments of test_spinlock() end with."""
    search = Exploration(Primitives("spinlock", ("l", "l")), memory_model="pso", weaken=kinds)
    search.run(stop_at_violation=False)
    return {violation[0] for violation in search.violations}


def test_spinlock() -> None:
    assert locks_missing() == set()
    assert locks_missing("release") == {LOST}
    assert locks_missing("spinlock") == {LOST}


@dataclass(frozen=True)
class FaultMutant:
    """An option of spf-rfc5 that takes one thing out of the corrected pte_map_lock()."""

    options: str
    tape: Callable[[], Tape]
    model: str
    kind: str


# Not here: rmb=after, because no fault needs what that barrier would order (docs/explanation/mutations).
FAULTS = (
    FaultMutant("recheck=before", races.mprotect_fault, "tso", LOST),
    FaultMutant("recheck=off", races.mprotect_fault, "tso", LOST),
    FaultMutant("recheck=off", races.munmap_fault, "tso", BROKEN),
    FaultMutant("pmd=trust", races.collapse_fault, "tso", UAF),
    FaultMutant("ptl=spin", races.spin_on_ptl, "tso", HUNG),
)


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case.options}-{case.tape.__name__}")
def test_pte_map_lock(case: FaultMutant) -> None:
    search = Exploration(make_program(case.tape(), f"spf-rfc5[fixes=all,{case.options}]"), memory_model=case.model)
    search.run(5000, stop_at_violation=False)
    assert case.kind in {violation[0] for violation in search.violations}
    intact = Exploration(make_program(case.tape(), "spf-rfc5[fixes=all]"), memory_model=case.model)
    intact.run(20_000)
    assert not intact.violations


@dataclass(frozen=True)
class WeakMutant:
    """Barriers of the mm and of shipped strategies, by their number among those of a kind that a vCPU comes to."""

    name: str
    scenario: str               #: of plugins/scenarios/weak
    weaken: str
    which: int
    kind: str
    model: str = "power"


WEAK = (
    WeakMutant("wmb of spf_vma_write_begin", "spf-split-file-fault", "wmb", 1 << 0, "wrong-value"),
    WeakMutant("wmb of spf_vma_write_end", "spf-mremap-dontunmap-fault", "wmb", 0b11 << 4, BROKEN),     # of two VMAs
    WeakMutant("rmb of raw_read_seqcount", "spf-mprotect-fault", "rmb", 1 << 2, LOST),
    WeakMutant("rmb of raw_read_seqcount, a dead VMA", "spf-munmap-fault", "rmb", 1 << 2, BROKEN),
    WeakMutant("rmb of read_seqcount_retry", "spf-split-fault", "rmb", 1 << 3, BROKEN),
    WeakMutant("wmb of mmap_seq_write_begin", "spf-2021-split-file-fault", "wmb", 1 << 0, "wrong-value"),
    WeakMutant("rmb of mmap_seq_read_start", "spf-2021-mprotect-fault", "rmb", 1 << 0, LOST),
    WeakMutant("rmb of mmap_seq_read_check", "spf-2021-split-fault", "rmb", 0b111 << 1, BROKEN),        # three calls
    WeakMutant("wmb of set_pte", "cow-read", "wmb", ALL, "wrong-value", "pso"),
    WeakMutant("mb of fork before it looks at pins", "gup-fork", "mb", 1 << 0, "wrong-value"),
)


@pytest.mark.parametrize("case", WEAK, ids=lambda case: case.name)
def test_barrier(case: WeakMutant) -> None:
    scenario = get(f"weak-{case.scenario}")

    def search(*weaken: str) -> Exploration:
        config = scenario.fixed
        found = Exploration(make_program(scenario.tape(), config.strategy, config.arch), memory_model=case.model,
                            weaken=weaken, weaken_which=case.which)
        found.run(20_000)
        return found

    assert [violation[0] for violation in search(case.weaken).violations] == [case.kind]
    intact = search()
    assert not intact.violations
    assert intact.complete
