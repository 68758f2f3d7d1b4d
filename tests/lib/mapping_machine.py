# SPDX-License-Identifier: GPL-2.0-only
"""A machine of mappings only: does every operation of a program find what it needs?"""
from __future__ import annotations

import random

from pykmm.flags import MAP
from pykmm.tape import OPCODES
from pykmm.tape_layout import Layout

NAMES = list(OPCODES)
FIXED = MAP["MAP_FIXED"]


def birth(layout, piece, at):
    """The VMA gets an anon_vma, or its neighbour's."""
    for near in (layout.find(piece.end), layout.find(piece.start - 1)):
        if near is not None and near.anon >= 0 and near.flags == piece.flags and near.file == piece.file:
            piece.anon = near.anon
            return
    piece.anon = at


def interleave(program, seed):
    """Runs a program in a random order that respects its waits; (problems, address spaces at the end)."""
    rng = random.Random(seed)
    start, first = program.stream_start.tolist(), program.dep_start.tolist()
    stream, pos = program.dep_stream.tolist(), program.dep_pos.tolist()
    c = {name: program.ops[name].tolist() for name in program.ops.dtype.names}
    done, dead, problems = [0] * program.nstreams, set(), []
    spaces = {mm: Layout(merging=True) for mm in program.roots}
    live = list(range(program.nstreams))
    idle = 0
    while live:
        s = rng.choice(live)
        burst = rng.choice((1, 1, 3, 50, 5000))
        moved = False
        while burst and done[s] < start[s + 1] - start[s]:
            i = start[s] + done[s]
            if any(done[stream[k]] <= pos[k] for k in range(first[i], first[i + 1])):
                break
            problem = apply(c, i, spaces, dead, program)
            if problem:
                problems.append((problem, NAMES[c["op"][i]], hex(c["addr"][i]), c["source"][i]))
            done[s] += 1
            burst -= 1
            moved = True
        if done[s] == start[s + 1] - start[s]:
            live.remove(s)
        idle = 0 if moved else idle + 1
        if idle > 1000 * len(live) + 1000:
            problems.append("nothing can go on")
            break
    return problems, spaces


def apply(c, i, spaces, dead, program):
    """One operation; what is wrong with it, or None."""
    name, mm, address, result = NAMES[c["op"][i]], c["mm"][i], c["addr"][i], c["result"][i]
    length = (c["len"][i] + 4095) & ~4095
    space = spaces.get(mm)
    if space is None or mm in dead:
        return "no such address space now"
    wrong = None
    if name in ("MMAP", "MAP"):
        if name == "MMAP" and result < 0:
            return None
        if name == "MMAP" and address != result:
            wrong = "not replayed where it was"
        if not c["flags"][i] & FIXED and space.overlapping(address, address + length):
            wrong = "something is there"
        space.map(address, address + length, c["prot"][i], c["flags"][i], c["file"][i], c["offset"][i])
    elif name == "MUNMAP" and result == 0:
        if not space.overlapping(address, address + length):
            wrong = "nothing is there"
        space.unmap(address, address + length)
    elif name in ("MPROTECT", "MREMAP") and result >= 0:
        if not space.covered(address, address + length):
            wrong = "a hole"
        if name == "MPROTECT":
            space.protect(address, address + length, c["prot"][i])
        else:
            space.remap(address, length, result, (c["new_len"][i] + 4095) & ~4095, c["flags"][i])
    elif name == "SETBRK":
        space.start_brk, space.brk = address, c["new_addr"][i]
    elif name == "BRK" and result > 0:
        if (address or space.brk) != result:
            wrong = "another break"
        space.set_brk(result)
    elif name == "TOUCH":
        piece = space.find(address) or space.grows_to(address)
        if piece is None:
            return "nothing is there"
        access = c["access"][i]
        if not piece.prot & (1, 2, 4)[access]:
            wrong = "not allowed"
        if access == 1 and piece.anon < 0 and not piece.shared:
            birth(space, piece, int(program.order[i]))
    elif name == "FORK":
        spaces[c["mm2"][i]] = space.copy()
    elif name == "EXEC":
        spaces[c["mm2"][i]] = Layout(merging=True)
    elif name == "EXIT":
        dead.add(mm)
    return wrong


def areas(rows):
    """Ranges with equal properties, joined: [(start, end, perms, offset, has a file)]."""
    joined = []
    for start, end, perms, offset, file in sorted(rows):
        last = joined[-1] if joined else None
        if last and last[1] == start and last[2] == perms and last[4] == file and (
                not file or last[3] + start - last[0] == offset):
            joined[-1] = (last[0], end, *last[2:])
        else:
            joined.append((start, end, perms, offset, file))
    return joined


def of_layout(layout):
    return areas((p.start, p.end, "".join(x if p.prot >> i & 1 else "-" for i, x in enumerate("rwx"))
                  + "ps"[p.shared], p.offset if p.file >= 0 else 0, p.file >= 0) for p in layout)


def of_maps(lines):
    return areas((x.start, x.end, x.perms, x.offset if x.ino else 0, bool(x.ino)) for x in lines if x.end < 1 << 56)
