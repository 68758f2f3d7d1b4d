# SPDX-License-Identifier: GPL-2.0-only
"""Classical concurrent algorithms for pykmm.explore: right ones are exhausted, broken ones found."""
from __future__ import annotations

from math import factorial

import pytest
from explore_programs import philosophers

import pykmm

STRONG = ("sc", "tso")
ALL = ("sc", "tso", "pso", "power")


def exhausted(program, model="sc", **options):
    report = pykmm.explore(program, memory_model=model, **options)
    assert report.ok and report.complete, report
    return report


def found(program, kind, model="sc", **options):
    report = pykmm.explore(program, memory_model=model, **options)
    assert report.violations and report.violations[0].kind == kind, report
    assert report.replay().kind == kind
    return report.violations[0]


def in_section(inside, cpu):
    """Two CPUs in it are a data race."""
    inside.store(inside.load(cpu) + 1, cpu)


# -- mutual exclusion ---------------------------------------------------------------------------------

def ticket_lock(n, atomic=True, order="release"):
    def program(x):
        ticket, owner, inside = x.atomic(name="ticket"), x.atomic(name="owner"), x.plain(0, "inside")

        def one(cpu):
            if atomic:
                mine = ticket.fetch_add(1, cpu)
            else:
                mine = ticket.load(cpu)
                ticket.store(mine + 1, cpu)
            owner.cond_load_acquire(mine, cpu)
            in_section(inside, cpu)
            if order == "release":
                owner.store_release(mine + 1, cpu)
            else:
                owner.store(mine + 1, cpu)

        for _ in range(n):
            x.vcpu(one)
    return program


@pytest.mark.parametrize("model", ALL)
def test_ticket_lock(model):
    assert exhausted(ticket_lock(3), model).executions == factorial(3)
    report = pykmm.explore(ticket_lock(2, atomic=False), memory_model=model, stop_at_violation=False)
    kinds = {v.kind for v in report.violations}     # one ticket for both
    assert "data-race" in kinds and kinds <= {"data-race", "deadlock"}
    found(ticket_lock(2, order="relaxed"), "data-race", model)


def clh_lock(n, release=True):
    """Each waits for the node of the one before; nodes 1 to n, 0 is free from the beginning."""
    def program(x):
        tail, inside = x.atomic(0, "tail"), x.plain(0, "inside")
        busy = [x.atomic(0, f"node {i}") for i in range(n + 1)]

        def one(cpu, me):
            busy[me].store(1, cpu)
            before = tail.xchg(me, cpu)
            busy[before].cond_load_acquire(0, cpu)
            in_section(inside, cpu)
            if release:
                busy[me].store_release(0, cpu)
            else:
                busy[me].store(0, cpu)

        for me in range(1, n + 1):
            x.vcpu(one, me)
    return program


@pytest.mark.parametrize("model", ALL)
def test_clh_lock(model):
    assert exhausted(clh_lock(3), model).executions == factorial(3)
    found(clh_lock(2, release=False), "data-race", model)


def bakery(n, fence):
    """Lamport's bakery. Numbers and choosing flags as the paper has them."""
    def program(x):
        choosing = [x.atomic(name=f"choosing {i}") for i in range(n)]
        number = [x.atomic(name=f"number {i}") for i in range(n)]
        inside = x.atomic(0, "inside")

        def one(cpu, me):
            choosing[me].store(1, cpu)
            if fence:
                cpu.smp_mb()
            mine = 1 + max(number[i].load(cpu) for i in range(n))
            number[me].store(mine, cpu)
            if fence:
                cpu.smp_mb()
            choosing[me].store(0, cpu)
            if fence:
                cpu.smp_mb()
            for i in range(n):
                if i != me:
                    choosing[i].cond_load_acquire(0, cpu)
                    number[i].cond_load_acquire(lambda v, i=i: v == 0 or (v, i) > (mine, me), cpu)
            assert inside.add_return(1, cpu) == 1, "two are in"
            inside.add_return(-1, cpu)
            number[me].store_release(0, cpu)

        for me in range(n):
            x.vcpu(one, me)
    return program


def test_bakery():
    for model in ALL:
        exhausted(bakery(2, True), model)
    exhausted(bakery(2, False), "sc")
    for model in ALL[1:]:
        assert "two are in" in found(bakery(2, False), "assertion", model).message


# -- queues and reclamation ---------------------------------------------------------------------------

def ring(order):
    """One producer, one consumer, two slots, three values."""
    def program(x):
        head, tail = x.atomic(name="head"), x.atomic(name="tail")
        slots = [x.atomic(name=f"slot {i}") for i in range(2)]
        got = []

        def producer(cpu):
            for i in range(3):
                head.cond_load_acquire(lambda h, i=i: i - h < 2, cpu)
                slots[i % 2].store(i + 1, cpu)
                (tail.store_release if order else tail.store)(i + 1, cpu)

        def consumer(cpu):
            for i in range(3):
                tail.cond_load_acquire(lambda t, i=i: t > i, cpu)
                got.append(slots[i % 2].load(cpu))
                head.store_release(i + 1, cpu)

        def check():
            assert got == [1, 2, 3], got

        x.vcpu(producer)
        x.vcpu(consumer)
        x.final(check)
    return program


@pytest.mark.parametrize("model", ALL)
def test_ring(model):
    exhausted(ring(True), model)
    if model in STRONG:
        exhausted(ring(False), model)
    else:
        found(ring(False), "assertion", model)


def michael_scott(check_next):
    """Two enqueue nodes 1 and 2, behind the dummy 0; the tail may lag. Broken: the link is not taken by cmpxchg."""
    def program(x):
        following = [x.atomic(0, f"next of {i}") for i in range(3)]
        tail = x.atomic(0, "tail")

        def enqueue(cpu, node):
            while True:
                last = tail.load_acquire(cpu)
                after = following[last].load_acquire(cpu)
                if after:
                    tail.cmpxchg(last, after, cpu)      # help
                    continue
                if check_next:
                    if following[last].cmpxchg(0, node, cpu) == 0:
                        break
                else:
                    following[last].store(node, cpu)
                    break
            tail.cmpxchg(last, node, cpu)

        def check():
            seen, node = [], following[0].load()
            while node:
                seen.append(node)
                node = following[node].load()
            assert sorted(seen) == [1, 2], f"{seen} are in the queue"
            return tuple(seen)

        x.vcpu(enqueue, 1)
        x.vcpu(enqueue, 2)
        x.final(check)
    return program


def test_michael_scott_queue():
    for model in STRONG:
        assert set(exhausted(michael_scott(True), model).outcomes) == {(1, 2), (2, 1)}
        assert "in the queue" in found(michael_scott(False), "assertion", model).message


def hazard_pointer(fence, recheck=True):
    """A reader announces what it is about to use; who takes it out frees it when nobody announces it."""
    def program(x):
        shared, hazard = x.atomic(1, "shared"), x.atomic(0, "hazard")
        node = x.plain("data", "node")

        def reader(cpu):
            seen = shared.load(cpu)
            if not seen:
                return
            hazard.store(seen, cpu)
            if fence:
                cpu.smp_mb()
            if recheck and shared.load_acquire(cpu) != seen:
                return
            node.load(cpu)
            hazard.store_release(0, cpu)

        def reclaimer(cpu):
            shared.store(0, cpu)
            if fence:
                cpu.smp_mb()
            if not hazard.load_acquire(cpu):
                node.kfree(cpu)

        x.vcpu(reader)
        x.vcpu(reclaimer)
    return program


def test_hazard_pointers():
    for model in ALL:
        exhausted(hazard_pointer(True), model)
        found(hazard_pointer(True, recheck=False), "use-after-free", model)
    exhausted(hazard_pointer(False), "sc")
    for model in ALL[1:]:
        found(hazard_pointer(False), "use-after-free", model)


def rcu_list(grace_period):
    """A node between two others is taken out while somebody goes along the list."""
    def program(x):
        rcu = x.rcu()
        following = [x.atomic(i + 1, f"next of {i}") for i in range(2)] + [x.atomic(0, "next of 2")]
        nodes = [x.plain(i, f"node {i}") for i in range(3)]

        def reader(cpu):
            seen = []
            rcu.read_lock(cpu)
            node = following[0].rcu_dereference(cpu)
            while node:
                after = following[node].rcu_dereference(cpu)
                seen.append(nodes[node].load(cpu))
                node = after
            rcu.read_unlock(cpu)
            assert seen in ([1, 2], [2])

        def updater(cpu):
            following[0].store_release(2, cpu)
            if grace_period:
                rcu.synchronize(cpu)
            nodes[1].kfree(cpu)

        x.vcpu(reader)
        x.vcpu(updater)
    return program


@pytest.mark.parametrize("model", ALL)
def test_rcu_list(model):
    exhausted(rcu_list(True), model)
    found(rcu_list(False), "use-after-free", model)


def rcu_litmus(sync):
    """RCU+sync+read: a reader that misses the store after the grace period has to see the one before it."""
    def program(x):
        rcu, a, b, seen = x.rcu(), x.atomic(name="a"), x.atomic(name="b"), []

        def reader(cpu):
            rcu.read_lock(cpu)
            first = a.load(cpu)
            seen.append((first, b.load(cpu)))
            rcu.read_unlock(cpu)

        def updater(cpu):
            b.store(1, cpu)
            if sync == "rcu":
                rcu.synchronize(cpu)
            elif sync == "wmb":
                cpu.smp_wmb()
            a.store(1, cpu)

        x.vcpu(reader)
        x.vcpu(updater)
        x.final(lambda: seen[0])
    return program


def test_rcu_litmus():
    for model in ALL:
        assert (1, 0) not in exhausted(rcu_litmus("rcu"), model).outcomes
    assert (1, 0) in exhausted(rcu_litmus("wmb"), "power").outcomes     # the reader's loads are in no order


# -- meeting and waiting ------------------------------------------------------------------------------

def barrier(reverse):
    """Two CPUs meet twice. Without a sense that is reversed, who is late finds the barrier reset."""
    def program(x):
        count, sense = x.atomic(2, "count"), x.atomic(0, "sense")
        phase = [x.atomic(name=f"phase of {i}") for i in range(2)]

        def one(cpu, me):
            for turn in (1, 2):
                phase[me].store_release(turn, cpu)
                mine = turn % 2 if reverse else 1
                if count.add_return(-1, cpu) == 0:
                    count.store(2, cpu)
                    sense.store_release(mine, cpu)
                else:
                    sense.cond_load_acquire(mine, cpu)
                assert phase[1 - me].load(cpu) >= turn, "the other is not there"

        x.vcpu(one, 0)
        x.vcpu(one, 1)
    return program


def test_sense_reversing_barrier():
    for model in ALL:
        exhausted(barrier(True), model)
        assert "not there" in found(barrier(False), "assertion", model).message


def readers_writers(exclusive):
    """A count of readers; -1 is a writer. Broken: the writer looks, and then takes it."""
    def program(x):
        state, data = x.atomic(0, "state"), x.plain(0, "data")

        def reader(cpu):
            while True:
                now = state.cond_load_acquire(lambda v: v < 2**63, cpu)
                if state.cmpxchg(now, now + 1, cpu) == now:
                    break
            data.load(cpu)
            state.add_return(-1, cpu)

        def writer(cpu):
            while True:
                state.cond_load_acquire(0, cpu)
                if not exclusive:
                    state.store(2**64 - 1, cpu)
                    break
                if state.cmpxchg(0, 2**64 - 1, cpu) == 0:
                    break
            data.store(1, cpu)
            state.store_release(0, cpu)

        x.vcpu(reader)
        x.vcpu(reader)
        x.vcpu(writer)
    return program


def test_readers_and_writer():
    exhausted(readers_writers(True))
    exhausted(readers_writers(True), "tso")
    found(readers_writers(False), "data-race")


def barber(tell):
    """A barber with one chair, two customers. Broken: the customer does not wake him when he is the second to come."""
    def program(x):
        lock, waiting = x.spin_lock("lock"), x.plain(0, "waiting")
        bell, served = x.atomic(0, "bell"), x.atomic(0, "served")

        def customer(cpu):
            lock.lock(cpu)
            first = waiting.load(cpu) == 0
            waiting.store(waiting.load(cpu) + 1, cpu)
            lock.unlock(cpu)
            if first or tell:
                bell.add_return(1, cpu)

        def works(cpu):
            for n in (1, 2):
                bell.cond_load_acquire(lambda rung, n=n: rung >= n, cpu)
                lock.lock(cpu)
                waiting.store(waiting.load(cpu) - 1, cpu)
                lock.unlock(cpu)
                served.store(n, cpu)

        x.vcpu(customer)
        x.vcpu(customer)
        x.vcpu(works)
    return program


def test_sleeping_barber():
    exhausted(barber(True))
    assert "waits for a change of bell" in found(barber(False), "deadlock").message


@pytest.mark.parametrize("n", [2, 3, 4])
def test_philosophers(n):
    """An execution is a choice, fork by fork, of who has it first, without circles: 2^n - 2. One circle deadlocks."""
    report = pykmm.explore(philosophers(n, False), stop_at_violation=False, minimised=False)
    assert report.executions == 2**n - 2 and report.failed == 1 and report.blocked == 0
    assert report.violations[0].kind == "deadlock" and report.violations[0].message.count("waits for") == n
    assert exhausted(philosophers(n, True)).executions == 2**n - 2
