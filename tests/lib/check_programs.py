# SPDX-License-Identifier: GPL-2.0-only
"""Instructions of litmus programs by short names, and classical programs made of them."""
from __future__ import annotations

from typing import Any

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.litmus import Litmus

Insn = dict[str, Any]
Item = Insn | str       # a str is a label
Code = list[Insn]


def L(reg: int, x: Any, **more: Any) -> Insn:
    """reg = READ_ONCE(x)"""
    return {"op": "load", "reg": reg, "addr": x, **more}


def S(x: Any, value: Any, **more: Any) -> Insn:
    """WRITE_ONCE(x, value)"""
    return {"op": "store", "addr": x, "a": value, **more}


def F(fence: str) -> Insn:
    """smp_mb(), smp_rmb(), smp_wmb(), lwsync"""
    return {"op": "fence", "fence": fence}


def RMW(reg: int, x: Any, rmw: str, a: Any, b: Any = 0, **more: Any) -> Insn:
    """reg = old value of x"""
    return {"op": "rmw", "reg": reg, "addr": x, "rmw": rmw, "a": a, "b": b, **more}


def op(name: str, **more: Any) -> Insn:
    """Any other instruction."""
    return {"op": name, **more}


def R(reg: int) -> tuple[str, int]:
    """A register as an operand."""
    return ("reg", reg)


def add(reg: int, a: Any) -> Insn:
    """reg += a"""
    return op("add", reg=reg, a=a)


def jump_if(reg: int, to: str) -> Insn:
    """Goes to a label when the register is not 0."""
    return op("jump_if", reg=reg, to=to)


def jump_unless(reg: int, to: str) -> Insn:
    """Goes to a label when the register is 0."""
    return op("jump_unless", reg=reg, to=to)


def jump_eq(reg: int, a: Any, to: str) -> Insn:
    """Goes to a label when the register equals a."""
    return op("jump_eq", reg=reg, a=a, to=to)


def lock(x: int = 0) -> Insn:
    """spin_lock()"""
    return op("lock", addr=x)


def unlock(x: int = 0) -> Insn:
    """spin_unlock()"""
    return op("unlock", addr=x)


def link(*items: Item) -> Code:
    """Labels become targets."""
    place: dict[str, int] = {}
    code: Code = []
    for item in items:
        if isinstance(item, str):
            place[item] = len(code)
        else:
            code.append(dict(item))
    for insn in code:
        if isinstance(insn.get("to"), str):
            insn["to"] = place[insn["to"]]
    return code or [op("end")]


def section(word: int, me: int) -> list[Item]:
    """A critical section that counts in `word` without atomics, asserting that it is alone."""
    return [S(word, me + 1), L(15, word), op("assert_eq", reg=15, a=me + 1), L(15, word + 1), add(15, 1),
            S(word + 1, R(15))]


# ---- programs that count executions; where the numbers come from stands in test_counts.py ----

def readers(n: int) -> list[Code]:
    """One writer, n readers."""
    return [[S(0, 1)]] + [[L(0, 0)] for _ in range(n)]


def lastzero(n: int) -> list[Code]:
    """Thread 0 looks for the last zero of an array, from its end; the others fill element j from element j - 1."""
    search = link(op("set", reg=0, a=n), "loop", L(1, ("reg", 0, 0)), jump_unless(1, "end"), add(0, -1),
                  jump_eq(2, 0, "loop"), "end", op("end"))
    return [search] + [[L(0, j - 1), add(0, 1), S(j, R(0))] for j in range(1, n + 1)]


def indexer(n: int, size: int = 128, most: int = 4) -> list[Code]:
    """n threads insert keys into a hash table with cmpxchg."""
    return [link("loop", jump_eq(0, most, "end"), add(0, 1), op("set", reg=1, a=R(0)), op("mul", reg=1, a=11),
                 add(1, me), op("set", reg=2, a=R(1)), op("mul", reg=2, a=7), op("mod", reg=2, a=size),
                 "try", RMW(3, ("reg", 2, 0), "cmpxchg", 0, R(1)), jump_unless(3, "loop"), add(2, 1),
                 op("mod", reg=2, a=size), jump_eq(9, 0, "try"), "end", op("end")) for me in range(n)]


def fib2(n: int) -> list[Code]:
    """Two threads: i += j and j += i, n times each."""
    def turn(i: int, j: int) -> Code:
        return [insn for _ in range(n) for insn in (L(0, i), L(1, j), add(0, R(1)), S(i, R(0)))]
    return [turn(0, 1), turn(1, 0)]


def fib_bench(n: int) -> list[Code]:
    """fib2, and a thread that looks at both."""
    return [*fib2(n), [L(0, 0), L(1, 1)]]


def increments(n: int) -> list[Code]:
    """n threads add 1 to one word."""
    return [[RMW(0, 0, "add", 1)] for _ in range(n)]


def lockers(n: int) -> list[Code]:
    """n threads add 1 under a spinlock."""
    return [[lock(), L(0, 1), add(0, 1), S(1, R(0)), unlock()] for _ in range(n)]


def ticket(n: int) -> list[Code]:
    """n threads add 1 under a ticket lock: 0 = next ticket, 1 = now serving."""
    return [[RMW(0, 0, "add", 1), op("await_eq", reg=1, addr=1, a=R(0)), L(2, 2), add(2, 1), S(2, R(2)), add(1, 1),
             S(1, R(1))] for _ in range(n)]


def abba() -> list[Code]:
    """Two locks in both orders."""
    return [[lock(0), lock(1), unlock(1), unlock(0)], [lock(1), lock(0), unlock(0), unlock(1)]]


def pfzap(n: int) -> list[Code]:
    """n - 1 CPUs fault one PTE (word 1) in under a lock, with a reference taken before; one zaps it."""
    fault = link(L(2, 1), jump_if(2, "end"), RMW(3, 2, "add", 1), lock(), L(0, 1), jump_if(0, "ul"), S(1, 1),
                 "ul", unlock(), jump_unless(0, "end"), RMW(3, 2, "add", -1), "end", op("end"))
    zap = link(lock(), L(0, 1), S(1, 0), unlock(), jump_unless(0, "end"), RMW(3, 2, "add", -1), "end", op("end"))
    return [fault] * (n - 1) + [zap]


# ---- mutual exclusion; each asserts that a section is alone; fence = "" for none ----

def _fence(fence: str) -> list[Item]:
    return [F(fence)] if fence else []


def dekker(fence: str = "") -> list[Code]:
    """Dekker, one round: flags 0 and 1, turn 2. The waiting is one await."""
    def side(me: int) -> Code:
        other = 1 - me
        return link(S(me, 1), *_fence(fence), L(0, other), jump_unless(0, "in"), L(1, 2), jump_eq(1, me, "wait"),
                    S(me, 0), op("await_eq", reg=2, addr=2, a=me), S(me, 1), *_fence(fence),
                    "wait", op("await_eq", reg=2, addr=other, a=0), "in", *section(4, me),
                    S(2, other, order="release"), S(me, 0, order="release"))
    return [side(0), side(1)]


def peterson(fence: str = "", between: str = "") -> list[Code]:
    """Peterson, one attempt each without waiting (who may not enter gives up): flags 0 and 1, turn 2."""
    def side(me: int) -> Code:
        other = 1 - me
        return link(S(me, 1), *_fence(between), S(2, other), *_fence(fence), L(0, other), jump_unless(0, "in"), L(1, 2),
                    jump_eq(1, other, "out"), "in", *section(4, me), "out", S(me, 0, order="release"))
    return [side(0), side(1)]


def lamport_fast(fence: str = "") -> list[Code]:
    """Lamport's fast mutual exclusion, first attempt, its slow path given up: x = 0, y = 1, b = 2 and 3."""
    def side(me: int) -> Code:
        return link(S(2 + me, 1), S(0, me + 1), *_fence(fence), L(0, 1), jump_if(0, "out"),
                    S(1, me + 1), *_fence(fence),
                    L(0, 0), jump_eq(0, me + 1, "in"), jump_eq(9, 0, "out"), "in", *section(5, me),
                    S(1, 0, order="release"), "out", S(2 + me, 0, order="release"))
    return [side(0), side(1)]


def szymanski(fence: str = "") -> list[Code]:
    """Szymanski for two, waits as awaits: flags 0 and 1."""
    def side(me: int) -> Code:
        other = 1 - me
        return link(S(me, 1), *_fence(fence), op("await_lt", reg=0, addr=other, a=3), S(me, 3), *_fence(fence),
                    L(0, other),
                    jump_eq(0, 1, "two"), jump_eq(9, 0, "four"), "two", S(me, 2), *_fence(fence),
                    op("await_eq", reg=0, addr=other, a=4), "four", S(me, 4), *_fence(fence),
                    *([op("await_lt", reg=0, addr=other, a=2)] if me == 1 else []), "in", *section(4, me),
                    *([L(0, other), jump_eq(0, 2, "late"), jump_eq(0, 3, "late"), jump_eq(9, 0, "out"), "late",
                       op("await_ge", reg=0, addr=other, a=4), "out"] if me == 0 else []),
                    S(me, 0, order="release"))
    return [side(0), side(1)]


def burns(fence: str = "") -> list[Code]:
    """Burns and Lynch for two, one attempt: flags 0 and 1; the one with the lower number waits."""
    first = link(S(0, 1), *_fence(fence), op("await_eq", reg=0, addr=1, a=0), *section(4, 0), S(0, 0, order="release"))
    second = link(L(0, 0), jump_if(0, "out"), S(1, 1), *_fence(fence), L(0, 0), jump_if(0, "back"), *section(4, 1),
                  "back", S(1, 0, order="release"), "out", op("end"))
    return [first, second]


def mcs(n: int) -> list[Code]:
    """MCS lock: tail = 0; node of thread i: next at 1 + 2i, locked at 2 + 2i."""
    def one(me: int) -> Code:
        next_, locked = 1 + 2 * me, 2 + 2 * me
        return link(S(next_, 0), S(locked, 1), RMW(0, 0, "xchg", me + 1), jump_unless(0, "in"), add(0, -1),
                    op("mul", reg=0, a=2), S(("reg", 0, 1), me + 1, order="release"),
                    op("await_eq", reg=1, addr=locked, a=0), "in", *section(20, me),
                    L(1, next_, order="acquire"), jump_if(1, "pass"),
                    RMW(1, 0, "cmpxchg", me + 1, 0), jump_eq(1, me + 1, "end"),
                    op("await_ne", reg=1, addr=next_, a=0), "pass", add(1, -1), op("mul", reg=1, a=2),
                    S(("reg", 1, 2), 0, order="release"), "end", op("end"))
    return [one(me) for me in range(n)]


# ---- others ----

def sigma(n: int) -> list[Code]:
    """n threads swap their array's element with its neighbour's counter: each stores where the shared counter says."""
    return [[RMW(0, 0, "add", 1), S(("reg", 0, 1), me + 1)] for me in range(n)]


def floating_read(n: int) -> list[Code]:
    """n threads store different words, one reads one of them."""
    return [[S(j, j + 1)] for j in range(n)] + [[L(0, 0)]]


def writers(n: int) -> list[Code]:
    """n threads store one word, and nobody reads."""
    return [[S(0, j + 1)] for j in range(n)]


def writers_readers(n: int, m: int) -> list[Code]:
    """n writers of one word, m readers."""
    return [*writers(n), *[[L(0, 0)] for _ in range(m)]]


def seqlock(reads: bool = True, wmb: str = "wmb", rmb: str = "rmb") -> list[Code]:
    """A sequence count (0) over two words (1, 2), one writer, one reader without a loop; r5 = 1 + torn when valid."""
    writer = link(S(0, 1), *_fence(wmb), S(1, 1), S(2, 1), *_fence(wmb), S(0, 2))
    reader = link(L(0, 0), op("set", reg=4, a=R(0)), op("mod", reg=4, a=2), jump_if(4, "end"), *_fence(rmb),
                  L(1, 1), L(2, 2),
                  *_fence(rmb), L(3, 0), jump_eq(3, R(0), "same"), jump_eq(9, 0, "end"), "same",
                  op("assert_eq", reg=1, a=R(2)), "end", op("end"))
    return [writer, reader] if reads else [writer]


def treiber(pushes: int, pops: int) -> list[Code]:
    """Treiber's stack: head = 0, node i's next at 10 + i; a push or pop that loses its race tries twice more."""
    def push(me: int) -> Code:
        node = me + 1
        items: list[Item] = ["try", L(0, 0), S(10 + node, R(0)), RMW(1, 0, "cmpxchg", R(0), node),
                             jump_eq(1, R(0), "end"),
                             add(5, 1), jump_eq(5, 3, "end"), jump_eq(9, 0, "try"), "end", op("end")]
        return link(*items)

    def pop() -> Code:
        return link("try", L(0, 0, order="acquire"), jump_unless(0, "end"), L(2, ("reg", 0, 10)),
                    RMW(1, 0, "cmpxchg", R(0), R(2)), jump_eq(1, R(0), "got"), add(5, 1), jump_eq(5, 3, "end"),
                    jump_eq(9, 0, "try"), "got", op("set", reg=8, a=R(0)), "end", op("end"))
    return [push(me) for me in range(pushes)] + [pop() for _ in range(pops)]


def exponential_bug(n: int) -> list[Code]:
    """One store must fall between two chains of others for the assertion to fail."""
    return [link(*[insn for _ in range(n) for insn in (L(0, 0), add(0, 1), S(0, R(0)))]),
            link(*[insn for _ in range(n) for insn in (L(0, 1), add(0, 1), S(1, R(0)))]),
            link(L(0, 0), jump_eq(0, n, "second"), jump_eq(9, 0, "end"), "second", L(1, 1), op("assert_eq", reg=1, a=0),
                 "end", op("end"))]


def filesystem(n: int, inodes: int = 4, blocks: int = 4) -> list[Code]:
    """Threads allocate a block for their inode, each inode and block with a lock (Flanagan and Godefroid, POPL'05)."""
    def one(me: int) -> Code:
        i = me % inodes
        return link(lock(i), L(0, 20 + i), jump_if(0, "end"), op("set", reg=1, a=i * 2 % blocks), add(2, 0), "try",
                    *[x for k in range(blocks) for x in (
                        jump_eq(1, k, f"take{k}"),)], jump_eq(9, 0, "end"),
                    *[x for k in range(blocks) for x in (
                        f"take{k}", lock(10 + k), L(3, 30 + k), jump_if(3, f"busy{k}"), S(30 + k, 1), S(20 + i, k + 1),
                        unlock(10 + k), jump_eq(9, 0, "end"), f"busy{k}", unlock(10 + k),
                        op("set", reg=1, a=(k + 1) % blocks),
                        jump_eq(9, 0, "try"))],
                    "end", unlock(i))
    return [one(me) for me in range(n)]


def pfzap_part(prefix: tuple[Any, ...]) -> tuple[int, dict[int, int], int]:
    """One part of the search of pfzap(4), for another process: that one can import this module, but no test."""
    search = Exploration(Litmus(pfzap(4)), prefix=prefix)
    search.run(stop_at_violation=False)
    return search.executions, search.outcomes, search.blocked
