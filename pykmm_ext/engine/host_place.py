# SPDX-License-Identifier: GPL-2.0-only
"""engine/host: where a tape's addresses lie on the running kernel. See pykmm_ext.engine.host for the rules."""
from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pykmm.errors import PykmmError
from pykmm.tape import NO_RESULT, OPCODES

if TYPE_CHECKING:
    from pykmm.tape_program import TapeProgram

U64 = npt.NDArray[np.uint64]

PAGE = 4096
TASK_SIZE = 0x7ffffffff000
#: Where symbolic mappings end: the first slot lies right below it.
SLOT_TOP = 0x7ffff7fff000
#: start_brk of an address space to which no SETBRK gave one.
DEFAULT_BRK = 0x555555800000
HUGE = 2 << 20

#: kmm_host_op.how (include/kmm/host.h)
HOW_SLOT, HOW_HINT, HOW_IN_PLACE, HOW_MOVE, HOW_TRY_MOVE, HOW_SKIP, HOW_CLOSES = (1 << i for i in range(7))

_MASK = (1 << 64) - 1
_GAP = 64 << 20
_SLOT_MAX = 16 << 40
_MAP_FIXED = 0x10
_MAP_NOREPLACE = 0x100000
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
(
    _BRK, _LOAD, _MADVISE, _MAP, _MBIND, _MINCORE, _MLOCK, _MMAP,
    _MPROTECT, _MREMAP, _MSYNC, _MUNLOCK, _MUNMAP, _PIN, _SETBRK, _STORE,
    _TOUCH, _UNPIN,
) = (OPCODES[name] for name in (
    "BRK", "LOAD", "MADVISE", "MAP", "MBIND", "MINCORE", "MLOCK", "MMAP",
    "MPROTECT", "MREMAP", "MSYNC", "MUNLOCK", "MUNMAP", "PIN", "SETBRK", "STORE",
    "TOUCH", "UNPIN",
))
ADDRESSED = (_MMAP, _MUNMAP, _MPROTECT, _MREMAP, _MADVISE, _BRK, _MLOCK,
              _MUNLOCK, _MSYNC, _MINCORE, _MAP, _TOUCH, _LOAD, _STORE, _PIN,
              _UNPIN, _SETBRK, _MBIND)
RANGED = (_MUNMAP, _MPROTECT, _MADVISE, _MLOCK, _MUNLOCK, _MSYNC, _MBIND)


class HostEngineError(PykmmError, RuntimeError):
    """The run on the real kernel could not be set up or did not finish: time-out, a killed or crashed process."""


class Placement:
    """Slots for what the kernel would place, and every address that an operation may name."""

    def __init__(self, program: TapeProgram) -> None:
        ops = self.ops = program.ops
        n = len(ops)
        self.op = ops["op"]
        self.addr = ops["addr"].copy()
        self.new_addr = ops["new_addr"].copy()
        result = ops["result"]
        made = (result != NO_RESULT) & ((result >= 0) | (result < -4095))
        self.how = np.zeros(n, np.uint8)
        self.slot = np.zeros(n, np.uint64)
        self._slots(n, result, made)
        self.intervals = self._cover(result, made)

    def _slots(self, n: int, result: Any, made: Any) -> None:
        ops, op, flags, how = self.ops, self.op, self.ops["flags"], self.how
        fixed = (flags & (_MAP_FIXED | _MAP_NOREPLACE)) != 0
        is_mmap = op == _MMAP
        recorded = is_mmap & made & ~fixed
        self.slot[recorded] = result[recorded].astype(np.uint64)
        how[recorded] = HOW_SLOT
        is_map = op == _MAP
        self.slot[is_map] = self.addr[is_map]
        how[is_map] = HOW_SLOT
        how[is_map & (self.addr >= TASK_SIZE)] = HOW_SKIP
        wanted = []
        for i in np.nonzero(is_mmap & ~recorded & ~fixed)[0].tolist():
            length = int(ops["len"][i])
            if 0 < length <= _SLOT_MAX:
                how[i] = HOW_HINT if ops["addr"][i] or ops["addr_ref"][i] >= 0 else HOW_SLOT
                wanted.append((i, length))
        is_mremap = op == _MREMAP
        for i in np.nonzero(is_mremap)[0].tolist():
            f = int(flags[i])
            if f & _MREMAP_FIXED or not f & _MREMAP_MAYMOVE:
                continue
            if made[i]:
                same = int(result[i]) == int(ops["addr"][i]) and ops["addr_ref"][i] < 0
                how[i] = HOW_IN_PLACE if same else HOW_MOVE
                self.slot[i] = result[i]
                continue
            length = int(ops["new_len"][i])
            if 0 < length <= _SLOT_MAX:
                how[i] = HOW_MOVE if f & _MREMAP_DONTUNMAP else HOW_TRY_MOVE
                wanted.append((i, length))
        if not wanted:
            return
        total = sum((length + PAGE - 1) & -PAGE for _, length in wanted)
        top = self._free_top(total)
        for i, length in wanted:
            top -= (length + PAGE - 1) & -PAGE
            self.slot[i] = top

    def _free_top(self, total: int) -> int:
        """SLOT_TOP, or the next TiB below at which no absolute address of the tape is in the way."""
        ops = self.ops
        plain = (ops["addr_ref"] < 0) & (ops["addr"] >= PAGE) & (ops["addr"] < TASK_SIZE)
        plain &= np.isin(self.op, ADDRESSED)
        lo = ops["addr"][plain].astype(np.uint64)
        hi = lo + np.minimum(ops["len"][plain], np.uint64(_SLOT_MAX))
        made = self.slot[self.slot > 0]
        lo, hi = np.concatenate([lo, made]), np.concatenate([hi, made + np.uint64(PAGE)])
        top = SLOT_TOP
        while top - total - HUGE > HUGE:
            if not np.any((lo < top + HUGE) & (hi > top - total - HUGE)):
                return top
            top -= 1 << 40
        raise HostEngineError(f"no room for {total >> 20} MiB of mappings beside the addresses that the tape names")

    def _candidates(self, i: int) -> list[int]:
        """Tape addresses that the result of operation i may be."""
        found = self._known.get(i)
        if found is not None:
            return found
        op, ops = int(self.op[i]), self.ops
        if op == _BRK:
            found = [DEFAULT_BRK, *self._own(i), *self._brks]
        elif op == _MREMAP:
            found = [int(self.slot[i])] if self.how[i] & HOW_MOVE else [*self._own(i), int(self.slot[i])]
            if ops["flags"][i] & _MREMAP_FIXED:
                ref = int(ops["new_addr_ref"][i])
                base = [0] if ref < 0 else self._candidates(ref)
                found = [(b + int(ops["new_addr"][i])) & _MASK for b in base]
        elif self.how[i] & HOW_SLOT:
            found = [int(self.slot[i])]
        elif self.how[i] & HOW_HINT:
            found = [int(self.slot[i]), *self._own(i)]
        else:
            found = self._own(i)
        self._known[i] = found = sorted(set(found))
        return found

    def _own(self, i: int) -> list[int]:
        ref = int(self.ops["addr_ref"][i])
        base = [0] if ref < 0 else self._candidates(ref)
        return [(b + int(self.ops["addr"][i])) & _MASK for b in base]

    def _cover(self, result: Any, made: Any) -> tuple[U64, U64]:
        """[lo, hi) page-aligned, sorted, disjoint: everything that may be named."""
        ops, op = self.ops, self.op
        self._known: dict[int, list[int]] = {}
        self._brks = sorted(set(ops["addr"][(op == _SETBRK)].tolist())
                            | set(ops["new_addr"][(op == _SETBRK)].tolist()))
        lows: list[U64] = []
        highs: list[U64] = []

        def add(lo: U64, hi: U64) -> None:
            keep = (lo < TASK_SIZE) & (hi > lo)
            lows.append(lo[keep])
            highs.append(np.minimum(hi[keep], np.uint64(TASK_SIZE)))

        page = np.uint64(PAGE)
        placed = self.slot > 0
        sizes = np.where(op == _MREMAP, ops["new_len"], ops["len"])
        add(self.slot[placed], self.slot[placed] + np.minimum(sizes[placed], np.uint64(_SLOT_MAX)) + page)
        plain = np.isin(op, ADDRESSED) & (ops["addr_ref"] < 0) & (ops["addr"] < TASK_SIZE)
        lo = ops["addr"][plain]
        whole = np.isin(op[plain], (_MMAP, _MREMAP, _MAP, _TOUCH, _LOAD))
        length = ops["len"][plain].astype(np.uint64)
        length = np.where(op[plain] == _MREMAP, np.maximum(length, ops["new_len"][plain]), length)
        end = lo + np.minimum(length, np.uint64(TASK_SIZE))
        whole &= length <= _SLOT_MAX
        named = (lo != 0) | ~np.isin(op[plain], (_MMAP, _BRK))
        add(lo[named], np.where(whole, end, lo)[named] + page)
        tail = end[named] - np.minimum(end[named], np.uint64(1))
        add(tail, tail + page)
        new = (ops["new_addr_ref"] < 0) & (((op == _MREMAP) & ((ops["flags"] & _MREMAP_FIXED) != 0))
                                           | (op == _SETBRK)) & (ops["new_addr"] < TASK_SIZE)
        add(ops["new_addr"][new], ops["new_addr"][new]
            + np.where(op[new] == _MREMAP, np.minimum(ops["new_len"][new], np.uint64(_SLOT_MAX)), 0).astype(np.uint64)
            + page)
        if np.any(op == _BRK) or np.any(op == _SETBRK):
            add(np.array([DEFAULT_BRK], np.uint64), np.array([DEFAULT_BRK + PAGE], np.uint64))
        extra = []
        for i in np.nonzero((ops["addr_ref"] >= 0) | (ops["new_addr_ref"] >= 0))[0].tolist():
            size = int(max(ops["len"][i], ops["new_len"][i]))
            size = size if size <= _SLOT_MAX else 1
            for base in self._own(i) if ops["addr_ref"][i] >= 0 else ():
                extra.append((base, base + size + PAGE))
            ref = int(ops["new_addr_ref"][i])
            for base in self._candidates(ref) if ref >= 0 else ():
                base = (base + int(ops["new_addr"][i])) & _MASK
                extra.append((base, base + size + PAGE))
        extra = [(lo, hi) for lo, hi in extra if lo < TASK_SIZE]
        if extra:
            pairs = np.array(extra, np.uint64)
            add(pairs[:, 0], pairs[:, 1])
        lo = np.concatenate(lows) & np.uint64(_MASK - PAGE + 1) if lows else np.zeros(0, np.uint64)
        hi = (np.concatenate(highs) + np.uint64(PAGE - 1)) & np.uint64(_MASK - PAGE + 1)
        order = np.argsort(lo, kind="stable")
        lo, hi = lo[order], hi[order]
        if not len(lo):
            return np.array([SLOT_TOP - PAGE], np.uint64), np.array([SLOT_TOP], np.uint64)
        reach = np.maximum.accumulate(hi)
        first = np.ones(len(lo), bool)
        first[1:] = lo[1:] > reach[:-1] + np.uint64(_GAP)
        starts = np.nonzero(first)[0]
        ends = np.append(starts[1:], len(lo)) - 1
        return lo[starts], reach[ends]


class AddressMap:
    """Tape addresses <-> host addresses: order, distances inside a cluster and congruence modulo 2 MiB are kept."""

    def __init__(self, lo: U64, hi: U64) -> None:
        self.lo, self.hi = lo, hi
        offsets, at = [], HUGE
        for start, end in zip(lo.tolist(), hi.tolist(), strict=True):
            at = (at + HUGE - 1) // HUGE * HUGE + start % HUGE
            offsets.append(at)
            at += end - start + _GAP
        self.offsets = np.array(offsets, np.uint64)
        self.total = (at + HUGE) // HUGE * HUGE
        self.host = self.offsets

    def settle(self, base: int) -> None:
        self.base = base
        self.host = self.offsets + np.uint64(base)

    def inside(self, addr: U64) -> npt.NDArray[np.bool_]:
        at = np.searchsorted(self.lo, addr, side="right").astype(np.int64) - 1
        return (at >= 0) & (addr <= self.hi[np.maximum(at, 0)])

    def to_host(self, addr: U64) -> U64:
        """Addresses outside every cluster stay as they are."""
        at = np.maximum(np.searchsorted(self.lo, addr, side="right").astype(np.int64) - 1, 0)
        return np.where(self.inside(addr), addr - self.lo[at] + self.host[at], addr)

    def to_tape(self, addr: U64) -> U64:
        """Host addresses inside the range; in a gap, as far from the cluster below as they are."""
        at = np.maximum(np.searchsorted(self.host, addr, side="right").astype(np.int64) - 1, 0)
        return addr - self.host[at] + self.lo[at]


def place(program: TapeProgram) -> TapeProgram:
    """The program with the addresses that run() gives it: its symbolic mmaps are absolute.

    An mmap without address gets its slot and MAP_FIXED_NOREPLACE, an mremap that may move gets MREMAP_FIXED and its
    slot, and addresses relative to them become numbers. Addresses relative to brk, or to an mmap with a hint, stay
    symbolic. Another engine that runs the placed program ends with the same addresses, so maps can be compared line
    by line.
    """
    where = Placement(program)
    ops = program.ops.copy()
    fixed: dict[int, int] = {}
    for i in range(len(ops)):
        for ref_name, name in (("addr_ref", "addr"), ("new_addr_ref", "new_addr")):
            ref = int(ops[ref_name][i])
            if ref in fixed:
                ops[name][i] = (int(ops[name][i]) + fixed[ref]) & _MASK
                ops[ref_name][i] = -1
        op = int(ops["op"][i])
        if op == _MMAP:
            if where.how[i] & HOW_SLOT:
                ops["addr"][i] = where.slot[i]
                ops["flags"][i] |= _MAP_NOREPLACE
            if ops["addr_ref"][i] < 0 and not where.how[i] & HOW_HINT:
                fixed[i] = int(ops["addr"][i])
        elif op == _MREMAP:
            if where.how[i] & (HOW_MOVE | HOW_TRY_MOVE):
                ops["new_addr"][i] = where.slot[i]
                ops["new_addr_ref"][i] = -1
                ops["flags"][i] |= _MREMAP_FIXED
            if ops["flags"][i] & _MREMAP_FIXED:
                if ops["new_addr_ref"][i] < 0:
                    fixed[i] = int(ops["new_addr"][i])
            elif ops["addr_ref"][i] < 0:
                fixed[i] = int(ops["addr"][i])
    return dataclasses.replace(program, ops=ops)


def with_queries(lo: U64, hi: U64, queries: list[tuple[int, int, int]]) -> tuple[U64, U64]:
    """The intervals with the pages that run(pagemap=...) asks for."""
    pairs = list(zip(lo.tolist(), hi.tolist(), strict=True))
    pairs += [(addr & -PAGE, (addr & -PAGE) + count * PAGE) for _, addr, count in queries]
    pairs.sort()
    merged: list[list[int]] = []
    for start, end in pairs:
        if merged and start <= merged[-1][1] + _GAP:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    both = np.array(merged, np.uint64)
    return both[:, 0], both[:, 1]
