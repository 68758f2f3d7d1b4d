# SPDX-License-Identifier: GPL-2.0-only
"""Small random programs for the check engine."""
from __future__ import annotations

import random
from typing import Any

Insn = dict[str, Any]

SPIN, RWSEM = 4, 5      # words that are locks; 0 and 1 are data


def simple(rng: random.Random, words: int = 2) -> list[Insn]:
    """One access of memory, a fence or a choice; register 0 collects what was read."""
    kind = rng.choice(["load", "load", "store", "store", "store", "rmw", "rmw", "fence", "await", "choose", "copy"])
    x = rng.randrange(words)
    if kind == "load":
        return [{"op": "load", "reg": 1, "addr": x, "order": rng.choice(["relaxed", "relaxed", "acquire"])},
                {"op": "mul", "reg": 0, "a": 7}, {"op": "add", "reg": 0, "a": ("reg", 1)}]
    if kind == "store":
        return [{"op": "store", "addr": x, "a": rng.randrange(3),
                 "order": rng.choice(["relaxed", "relaxed", "release"])}]
    if kind == "copy":
        return [{"op": "store", "addr": x, "a": ("reg", 0)}]
    if kind == "rmw":
        rmw = rng.choice(["xchg", "cmpxchg", "add", "and", "or"])
        return [{"op": "rmw", "reg": 1, "addr": x, "rmw": rmw, "a": rng.randrange(3), "b": rng.randrange(3),
                 "order": rng.choice(["relaxed", "acquire", "release", "seq_cst"])},
                {"op": "mul", "reg": 0, "a": 7}, {"op": "add", "reg": 0, "a": ("reg", 1)}]
    if kind == "fence":
        return [{"op": "fence", "fence": rng.choice(["mb", "rmb", "wmb", "lwsync"])}]
    if kind == "await":
        return [{"op": rng.choice(["await_eq", "await_ne", "await_ge"]), "reg": 1, "addr": x, "a": rng.randrange(3)},
                {"op": "mul", "reg": 0, "a": 7}, {"op": "add", "reg": 0, "a": ("reg", 1)}]
    return [{"op": "choose", "reg": 1, "a": 2}, {"op": "mul", "reg": 0, "a": 7},
            {"op": "add", "reg": 0, "a": ("reg", 1)}]


def section(rng: random.Random, nthreads: int, me: int, irqs: bool) -> list[Insn]:
    """A critical section, an interrupt or a plain access."""
    kind = rng.choice(["lock", "trylock", "read", "write", "tryread", "trywrite", "downgrade"]
                      + (["ipi", "irq", "irq"] if irqs else []))
    spin, sem = SPIN + 2 * rng.randrange(2), RWSEM + 2 * rng.randrange(2)
    body = simple(rng) if rng.random() < 0.6 else []
    if kind == "lock":
        return [{"op": "lock", "addr": spin}, *body, {"op": "unlock", "addr": spin}]
    if kind == "read":
        return [{"op": "down_read", "addr": sem}, *body, {"op": "up_read", "addr": sem}]
    if kind == "write":
        return [{"op": "down_write", "addr": sem}, *body, {"op": "up_write", "addr": sem}]
    if kind == "downgrade":
        return [{"op": "down_write", "addr": sem}, {"op": "downgrade_write", "addr": sem}, *body,
                {"op": "up_read", "addr": sem}]
    if kind == "ipi":
        return [{"op": "ipi", "reg": 15, "a": rng.choice([t for t in range(nthreads) if t != me])}]
    if kind == "irq":
        return [{"op": "irq_disable"}, *[i for i in body if not i["op"].startswith("await")],
                {"op": "mul", "reg": 0, "a": 7}, {"op": "add", "reg": 0, "a": ("reg", 15)}, {"op": "irq_enable"}]
    op, lock, give = {"trylock": ("trylock", spin, "unlock"), "tryread": ("down_read_trylock", sem, "up_read"),
                      "trywrite": ("down_write_trylock", sem, "up_write")}[kind]
    code = [{"op": op, "reg": 2, "addr": lock}, {"op": "jump_unless", "reg": 2, "to": len(body) + 3}, *body,
            {"op": give, "addr": lock}]
    return [*code, {"op": "mul", "reg": 0, "a": 7}, {"op": "add", "reg": 0, "a": ("reg", 2)}]


def nested(rng: random.Random) -> list[Insn]:
    """Two locks at once: deadlocks come from here."""
    locks = [("lock", "unlock", SPIN), ("down_write", "up_write", RWSEM), ("down_read", "up_read", RWSEM),
             ("lock", "unlock", SPIN + 2), ("down_read", "up_read", RWSEM + 2)]
    (a, b, x), (c, d, y) = rng.sample(locks, 2)
    if x == y:
        return [{"op": a, "addr": x}, {"op": b, "addr": x}]
    return [{"op": a, "addr": x}, {"op": c, "addr": y}, {"op": d, "addr": y}, {"op": b, "addr": x}]


def asymmetric(rng: random.Random) -> list[list[Insn]]:
    """Two or three threads of a few accesses, with the two halves of an asymmetric barrier between them."""
    nthreads = rng.choice([2, 2, 3])
    threads = []
    for _ in range(nthreads):
        code: list[Insn] = []
        for _ in range(rng.randint(2, 4 if nthreads == 2 else 3)):
            r = rng.random()
            if r < 0.35:
                code.append({"op": "fence", "fence": "mb_light" if r < 0.2 else "mb_heavy"})
            else:
                code += simple(rng)
        threads.append(code)
    return threads


def heavy(rng: random.Random) -> list[list[Insn]]:
    """Two or three threads, of which one is rich in smp_mb_heavy(): what its barriers bind, and what they publish."""
    nthreads = rng.choice([2, 2, 2, 3])
    sender = rng.randrange(nthreads)
    seen: list[Insn] = [{"op": "mul", "reg": 0, "a": 5}, {"op": "add", "reg": 0, "a": ("reg", 1)}]
    threads = []
    for me in range(nthreads):
        code: list[Insn] = []
        for _ in range(rng.randint(2, 5 if nthreads == 2 else 3)):
            r, x = rng.random(), rng.randrange(3)
            load = {"op": "load", "reg": 1, "addr": x, "order": rng.choice(["relaxed", "relaxed", "acquire"])}
            if r < 0.12:
                code.append({"op": "fence", "fence": "mb_light"})
            elif r < (0.45 if me == sender else 0.25):
                code.append({"op": "fence", "fence": "mb_heavy"})
            elif r < 0.65:
                code += [load, *seen]
            elif r < 0.85:
                code.append({"op": "store", "addr": x, "a": rng.randrange(1, 4),
                             "order": rng.choice(["relaxed", "relaxed", "release"])})
            elif r < 0.9:
                code.append({"op": "rmw", "reg": 7, "addr": x, "rmw": "add", "a": 1,
                             "order": rng.choice(["posted", "relaxed", "acquire", "seq_cst"])})
            elif r < 0.95:
                code += [{"op": "lock", "addr": SPIN}, load, *seen, {"op": "unlock", "addr": SPIN}]
            else:
                code.append({"op": "fence", "fence": rng.choice(["rmb", "wmb", "mb", "lwsync"])})
        threads.append(code)
    return threads


def program(rng: random.Random, *, irqs: bool = True) -> list[list[Insn]]:
    """Two or three threads of a few accesses each."""
    nthreads = rng.choice([2, 2, 2, 3])
    threads = []
    for me in range(nthreads):
        code: list[Insn] = []
        for _ in range(rng.randint(1, 4 if nthreads == 2 else 2)):
            r = rng.random()
            part = simple(rng) if r < 0.65 else nested(rng) if r < 0.72 else section(rng, nthreads, me, irqs)
            base = len(code)    # jumps are relative to the beginning of their part
            code += [{**insn, "to": insn["to"] + base} if "to" in insn else insn for insn in part]
        threads.append(code)
    return threads


def scene(rng: random.Random) -> list[list[Insn]]:
    """Two or three threads of short scenes: a seqlock's two sides, locks with IRQs off, IPIs, awaits, downgrades."""
    nthreads = rng.choice([2, 2, 3])
    seen: list[Insn] = [{"op": "mul", "reg": 0, "a": 5}, {"op": "add", "reg": 0, "a": ("reg", 1)}]
    threads = []
    for me in range(nthreads):
        code: list[Insn] = []
        for _ in range(rng.randint(1, 3 if nthreads == 2 else 2)):
            x, value = rng.randrange(2), rng.randrange(1, 4)
            store, load = {"op": "store", "addr": x, "a": value}, {"op": "load", "reg": 1, "addr": x}

            def atomic(order: str) -> Insn:
                return {"op": "rmw", "reg": 1, "addr": 2, "rmw": "add", "a": 1, "order": order}

            base = len(code)
            part: list[Insn] = rng.choice([
                [{"op": "await_lt", "reg": 1, "addr": 2, "a": 2}, load, {"op": "fence", "fence": "rmb"},
                 {"op": "load", "reg": 2, "addr": 2}, *seen],
                [atomic(rng.choice(["relaxed", "acquire", "seq_cst"])), store, atomic("release"), *seen],
                [{"op": "irq_disable"}, {"op": "lock", "addr": SPIN}, load, *seen, {"op": "unlock", "addr": SPIN},
                 {"op": "irq_enable"}],
                [{"op": "ipi", "reg": 15, "a": (me + 1) % nthreads}],
                [{"op": "down_read", "addr": RWSEM}, load, *seen, {"op": "up_read", "addr": RWSEM}],
                [{"op": "down_write", "addr": RWSEM}, store, {"op": "downgrade_write", "addr": RWSEM},
                 {"op": "load", "reg": 1, "addr": 1 - x}, *seen, {"op": "up_read", "addr": RWSEM}],
                [{"op": "trylock", "reg": 1, "addr": SPIN}, {"op": "jump_unless", "reg": 1, "to": 4},
                 {"op": "store", "addr": x, "a": ("reg", 0)}, {"op": "unlock", "addr": SPIN}, *seen],
                [{**store, "order": rng.choice(["relaxed", "release"])}],
                [store, {"op": "fence", "fence": rng.choice(["mb", "wmb"])}, {"op": "load", "reg": 1, "addr": 1 - x},
                 *seen],
                [{"op": "rmw", "reg": 1, "addr": x, "rmw": "cmpxchg", "a": rng.randrange(2), "b": value,
                  "order": rng.choice(["relaxed", "acquire", "seq_cst"])}, *seen],
                [{"op": "await_ne", "reg": 1, "addr": x, "a": rng.randrange(3)}, *seen],
                [{"op": "down_write", "addr": RWSEM}, store, {"op": "up_write", "addr": RWSEM},
                 {"op": "choose", "reg": 1, "a": 2}, *seen],
            ])
            code += [{**insn, "to": insn["to"] + base} if "to" in insn else insn for insn in part]
        threads.append(code)
    return threads
