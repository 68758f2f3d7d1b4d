# SPDX-License-Identifier: GPL-2.0-only
"""Memory models as axioms, for comparison with what the check engine does step by step.

An execution of a litmus test is a choice of the store that every load reads from (rf) and of an order of the stores to
each word (co). All of them are enumerated here, and a model is a predicate on them: x86-TSO, Linux's memory model
(tools/memory-model, without RCU and locks) and Power with the instructions that Linux uses there. Nothing is shared
with the engine: programs are the same dicts (see Litmus), and that is all.

Sources: Alglave, Maranget, Tautschnig, "Herding cats" (TOPLAS 2014); Alglave, Maranget, McKenney, Parri, Stern,
"Frightening small children and disconcerting grown-ups" (ASPLOS 2018).

Relations are lists of bit masks: ``r[a] >> b & 1`` is (a, b) in r.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import permutations, product
from typing import Any

Insn = dict[str, Any]
Rel = list[int]


@dataclass
class Event:
    """A load, a store (of one word each) or a fence. Initial stores have thread -1."""

    thread: int
    kind: str               # "R", "W", "F"
    addr: int = -1
    order: str = "relaxed"  # or "acquire", "release", "seq_cst"; of a fence its name
    value: Any = 0          # of a store: a number, or ("reg", event of the load, function of its value)
    reg: int = -1
    rmw: int = -1           # of the store: the load
    addr_dep: int = -1      # the load that the address depends on


class Candidate:
    """One choice of rf and co, with the relations that all models share."""

    def __init__(self, test: Test, rf: dict[int, int], co: Rel, values: list[int]) -> None:
        self.test, self.values = test, values
        n = len(test.events)
        self.rf = [0] * n
        for load, store in rf.items():
            self.rf[store] |= 1 << load
        self.co = co
        self.fr = [0] * n
        for load, store in rf.items():
            self.fr[load] |= co[store]

    def outcome(self, observe: Sequence[tuple[Any, int]]) -> tuple[int, ...]:
        seen = []
        for thread, what in observe:
            if thread == "word":
                last = next(e for e in self.test.stores[what] if not self.co[e])
                seen.append(self.values[last])
            else:
                loads = [i for i, e in enumerate(self.test.events) if e.thread == thread and e.reg == what]
                seen.append(self.values[loads[-1]] if loads else 0)
        return tuple(value & 0xff for value in seen)


class Test:
    """The events of a program of straight lines. A jump to the next instruction makes a control dependency."""

    __test__ = False

    def __init__(self, threads: Sequence[Sequence[Insn]]) -> None:
        self.events: list[Event] = []
        self.po: Rel = []
        self.ctrl: list[tuple[int, int]] = []
        ends = []
        for t, code in enumerate(threads):
            first = len(self.events)
            last: dict[int, int] = {}
            guards: list[int] = []
            for insn in code:
                base = len(self.events)
                if insn["op"] == "jump_unless":
                    guards.append(last[insn["reg"]])
                    continue
                if insn["op"] == "load":
                    dep = last[insn["dep"]] if insn.get("dep") is not None else -1
                    self.events.append(Event(t, "R", insn["addr"], insn.get("order", "relaxed"), reg=insn["reg"],
                                             addr_dep=dep))
                    last[insn["reg"]] = base
                elif insn["op"] == "store":
                    value = insn["a"]
                    if isinstance(value, tuple):
                        value = ("reg", last[value[1]], _same) if value[1] in last else 0
                    self.events.append(Event(t, "W", insn["addr"], insn.get("order", "relaxed"), value))
                elif insn["op"] == "rmw":
                    order = insn.get("order", "seq_cst")
                    change = _adder(insn["a"]) if insn["rmw"] == "add" else _constant(insn["a"])
                    self.events.append(Event(t, "R", insn["addr"], order if order != "release" else "relaxed",
                                             reg=insn["reg"]))
                    self.events.append(Event(t, "W", insn["addr"], order if order != "acquire" else "relaxed",
                                             ("reg", base, change), rmw=base))
                    last[insn["reg"]] = base
                elif insn["op"] == "fence":
                    self.events.append(Event(t, "F", order=insn["fence"]))
                else:
                    raise ValueError(insn["op"])
                self.ctrl += [(guard, e) for guard in guards for e in range(base, len(self.events))]
            ends.append((first, len(self.events)))
        words = sorted({e.addr for e in self.events if e.addr >= 0})
        initial = len(self.events)
        self.events += [Event(-1, "W", addr) for addr in words]
        n = self.n = len(self.events)
        self.po = [0] * n
        for first, end in ends:
            for a in range(first, end):
                self.po[a] = sum(1 << b for b in range(a + 1, end))
        self.stores = {addr: [i for i, e in enumerate(self.events) if e.kind == "W" and e.addr == addr]
                       for addr in words}
        self.initial = {addr: initial + i for i, addr in enumerate(words)}
        self.R = sum(1 << i for i, e in enumerate(self.events) if e.kind == "R")
        self.W = sum(1 << i for i, e in enumerate(self.events) if e.kind == "W")
        self.M = self.R | self.W
        self.id = [1 << i for i in range(n)]
        self.internal = [sum(1 << b for b in range(n) if self.events[b].thread == e.thread >= 0) for e in self.events]
        self.loc = [sum(1 << b for b in range(n) if self.events[b].addr == e.addr >= 0) for e in self.events]
        self.rmw = self.pairs((e.rmw, i) for i, e in enumerate(self.events) if e.rmw >= 0)
        self.addr = self.pairs((e.addr_dep, i) for i, e in enumerate(self.events) if e.addr_dep >= 0)
        self.data = self.pairs((e.value[1], i) for i, e in enumerate(self.events) if isinstance(e.value, tuple)
                               and e.value[2].__name__ != "constant")
        self.ctrl_rel = self.pairs(self.ctrl)
        self.po_loc = meet(self.po, self.loc)

    def pairs(self, pairs: Any) -> Rel:
        r = [0] * self.n
        for a, b in pairs:
            r[a] |= 1 << b
        return r

    def fenced(self, *names: str) -> Rel:
        """Memory accesses with such a fence between them."""
        r = [0] * self.n
        for f, e in enumerate(self.events):
            if e.kind == "F" and e.order in names:
                before = [a for a in range(self.n) if self.po[a] >> f & 1]
                for a in before:
                    r[a] |= self.po[f] & self.M
        return only(self.M, r, self.M)

    def ordered(self, kind: str, *orders: str) -> int:
        return sum(1 << i for i, e in enumerate(self.events) if e.kind == kind and e.order in orders)

    def candidates(self) -> Iterator[Candidate]:
        """All of them whose values do not come out of thin air, that are coherent and whose RMWs are atomic. In none of
        them does a load read from a store that comes after it (po and rf together have no cycle)."""
        loads = [i for i, e in enumerate(self.events) if e.kind == "R"]
        orders = [[(self.initial[addr], *p) for p in permutations(s for s in stores if s != self.initial[addr])]
                  for addr, stores in self.stores.items()]
        for sources in product(*(self.stores[self.events[i].addr] for i in loads)):
            rf = dict(zip(loads, sources, strict=True))
            reads = [0] * self.n
            for load, store in rf.items():
                reads[store] |= 1 << load
            if cyclic(union(self.po, reads)):
                continue
            values = self.resolve(rf)
            for chosen in product(*orders):
                co = [0] * self.n
                for line in chosen:
                    for i, a in enumerate(line):
                        co[a] = sum(1 << b for b in line[i + 1:])
                one = Candidate(self, rf, co, values)
                if cyclic(union(self.po_loc, one.rf, one.co, one.fr)):
                    continue
                if any(row & self.rmw[a] for a, row in
                       enumerate(seq(minus(one.fr, self.internal), minus(co, self.internal)))):
                    continue
                yield one

    def resolve(self, rf: dict[int, int]) -> list[int]:
        known: dict[int, int] = {}

        def value(i: int) -> int:
            if i not in known:
                e = self.events[i]
                if e.kind == "R":
                    known[i] = value(rf[i])
                elif isinstance(e.value, tuple):
                    known[i] = e.value[2](value(e.value[1]))
                else:
                    known[i] = e.value
            return known[i]
        return [value(i) if e.kind != "F" else 0 for i, e in enumerate(self.events)]


def _same(value: int) -> int:
    return value


def _adder(n: int) -> Callable[[int], int]:
    return lambda value: value + n


def _constant(n: int) -> Callable[[int], int]:
    def constant(_: int) -> int:
        return n
    return constant


# ---- relations ----

def union(*rels: Rel) -> Rel:
    return [reduce(int.__or__, rows) for rows in zip(*rels, strict=True)]


def meet(a: Rel, b: Rel) -> Rel:
    return [x & y for x, y in zip(a, b, strict=True)]


def minus(a: Rel, b: Rel) -> Rel:
    return [x & ~y for x, y in zip(a, b, strict=True)]


def only(domain: int, r: Rel, image: int) -> Rel:
    return [row & image if domain >> a & 1 else 0 for a, row in enumerate(r)]


def seq(*rels: Rel) -> Rel:
    first, *rest = rels
    for other in rest:
        first = [_row(row, other) for row in first]
    return first


def _row(row: int, other: Rel) -> int:
    out = 0
    while row:
        low = row & -row
        out |= other[low.bit_length() - 1]
        row ^= low
    return out


def plus(r: Rel) -> Rel:
    """Transitive closure."""
    r = list(r)
    for k in range(len(r)):
        for a in range(len(r)):
            if r[a] >> k & 1:
                r[a] |= r[k]
    return r


def star(r: Rel) -> Rel:
    return [row | 1 << a for a, row in enumerate(plus(r))]


def maybe(r: Rel) -> Rel:
    return [row | 1 << a for a, row in enumerate(r)]


def cyclic(r: Rel) -> bool:
    return any(row >> a & 1 for a, row in enumerate(plus(r)))


# ---- models ----

def sc(c: Candidate) -> bool:
    return not cyclic(union(c.test.po, c.rf, c.co, c.fr))


def tso(c: Candidate) -> bool:
    """x86: RMWs and smp_mb() are MFENCEs; every other barrier and order is for the compiler."""
    t = c.test
    ppo = only(t.M, t.po, t.M)
    ppo = minus(ppo, only(t.W, ppo, t.R))
    locked = sum(1 << i | 1 << e.rmw for i, e in enumerate(t.events) if e.rmw >= 0)
    implied = union(only(t.M, t.po, locked), only(locked, t.po, t.M))
    return not cyclic(union(ppo, t.fenced("mb"), implied, minus(c.rf, t.internal), c.co, c.fr))


def lkmm(c: Candidate) -> bool:
    """Linux: what code may rely on, on any architecture."""
    t = c.test
    rfe, rfi = minus(c.rf, t.internal), meet(c.rf, t.internal)
    acq = t.ordered("R", "acquire", "seq_cst")
    rel = t.ordered("W", "release", "seq_cst")
    acq_po, po_rel = only(acq, t.po, t.M), only(t.M, t.po, rel)
    rmb, wmb = only(t.R, t.fenced("rmb"), t.R), only(t.W, t.fenced("wmb"), t.W)
    full = [(e.rmw, i) for i, e in enumerate(t.events) if e.rmw >= 0 and e.order == "seq_cst"]
    mb = t.fenced("mb")
    for load, store in full:    # a barrier on both sides
        before = sum(1 << a for a in range(t.n) if t.po[a] >> load & 1) & t.M
        after = t.po[store] & t.M
        both = 1 << load | 1 << store
        mb = [row | (both | after if before >> a & 1 else 0) | (after if both >> a & 1 else 0)
              for a, row in enumerate(mb)]
    strong = mb
    fence = union(strong, po_rel, acq_po, wmb, rmb)
    dep = union(t.addr, t.data)
    rwdep = only(t.M, union(dep, t.ctrl_rel), t.W)
    overwrite = union(c.co, c.fr)
    to_w = union(rwdep, meet(overwrite, t.internal))
    to_r = union(only(t.M, t.addr, t.R), seq(dep, rfi))
    ppo = union(to_r, to_w, meet(fence, t.internal))
    rmw_sequence = star(seq(c.rf, t.rmw))
    cumul = seq(union(seq(maybe(rfe), union(strong, po_rel)), wmb), rmw_sequence)
    prop = seq(maybe(minus(overwrite, t.internal)), star(cumul), maybe(rfe))
    hb = union(ppo, rfe, meet(minus(prop, t.id), t.internal))
    if cyclic(hb):
        return False
    return not cyclic(seq(prop, strong, star(hb)))


def power(c: Candidate, *, produced: bool = False) -> bool:
    """Power, with Linux's instructions: smp_mb() = sync; smp_rmb(), smp_wmb(), release and acquire = lwsync.

    `produced`: only what the engine's model is documented to produce: no store is visible before what the same CPU
    loaded earlier, nor before an earlier read-modify-write; and there is one order in which stores become visible, so
    that nobody reads a store of another before its place in the order of its word is known.
    """
    t = c.test
    rfe, rfi = minus(c.rf, t.internal), meet(c.rf, t.internal)
    fre, coe = minus(c.fr, t.internal), minus(c.co, t.internal)
    sync = t.fenced("mb")
    light = t.fenced("rmb", "wmb", "lwsync")
    for i, e in enumerate(t.events):
        after, before = t.po[i] & t.M, sum(1 << a for a in range(t.n) if t.po[a] >> i & 1) & t.M
        if e.kind == "R" and e.order == "acquire":
            own = next((w for w, x in enumerate(t.events) if x.rmw == i), -1)   # behind the whole RMW
            if own >= 0:
                after = t.po[own] & t.M
                before |= 1 << own
            light = [row | (after if (before | 1 << i) >> a & 1 else 0) for a, row in enumerate(light)]
        if e.kind == "W" and e.order == "release":
            if e.rmw >= 0:
                before &= ~(1 << e.rmw)
                after |= 1 << e.rmw
            light = [row | (after | 1 << i if before >> a & 1 else 0) for a, row in enumerate(light)]
        if e.rmw >= 0 and e.order == "seq_cst":
            both = 1 << i | 1 << e.rmw
            before &= ~both
            sync = [row | (both | after if before >> a & 1 else 0) | (after if both >> a & 1 else 0)
                    for a, row in enumerate(sync)]
    light = minus(light, only(t.W, light, t.R))
    dd = union(t.addr, t.data)
    rdw, detour = meet(t.po_loc, seq(fre, rfe)), meet(t.po_loc, seq(coe, rfe))
    addrpo = seq(t.addr, only(t.M, t.po, t.M))
    ii0, ci0 = union(dd, rfi, rdw), detour
    cc0 = union(dd, only(t.M, t.po_loc, t.M), only(t.M, t.ctrl_rel, t.M), addrpo)
    ii, ic, ci, cc = list(ii0), [0] * t.n, list(ci0), list(cc0)
    while True:
        old = ii, ic, ci, cc
        ii = union(ii0, ci, seq(ic, ci), seq(ii, ii))
        ic = union(ii, cc, seq(ic, cc), seq(ii, ic))
        ci = union(ci0, seq(ci, ii), seq(cc, ci))
        cc = union(cc0, ci, seq(ci, ic), seq(cc, cc))
        if (ii, ic, ci, cc) == old:
            break
    ppo = union(only(t.R, ii, t.R), only(t.R, ic, t.W))
    fence = union(light, sync)
    if produced:
        modified = sum(1 << i for i, e in enumerate(t.events) if e.rmw >= 0)
        ppo = union(ppo, only(t.R | modified, t.po, t.W))
        stores = union(only(t.W, light, t.W), only(t.W, sync, t.M), only(modified, t.po, t.M), t.rmw)
        if cyclic(union(only(t.R, t.po, t.M), rfe, c.co, stores)):
            return False
    hb = union(ppo, fence, rfe)
    if cyclic(hb):
        return False
    hbs = star(hb)
    base = seq(union(fence, seq(rfe, fence)), hbs)
    com = star(union(c.rf, c.co, c.fr))
    prop = union(only(t.W, base, t.W), seq(com, star(base), sync, hbs))
    if any(row >> a & 1 for a, row in enumerate(seq(fre, prop, hbs))):
        return False
    return not cyclic(union(c.co, prop))


def produced(c: Candidate) -> bool:
    """power() without what the engine does not produce."""
    return power(c, produced=True)


def outcomes(threads: Sequence[Sequence[Insn]], observe: Sequence[tuple[Any, int]],
             *models: Callable[[Candidate], bool]) -> list[set[tuple[int, ...]]]:
    """What each model allows, but load buffering."""
    sets: list[set[tuple[int, ...]]] = [set() for _ in models]
    for one in Test(threads).candidates():
        seen = one.outcome(observe)
        for allowed, model in zip(sets, models, strict=True):
            if seen not in allowed and model(one):
                allowed.add(seen)
    return sets
