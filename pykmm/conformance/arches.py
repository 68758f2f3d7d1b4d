# SPDX-License-Identifier: GPL-2.0-only
"""The porting checklist of pykmm_ext/arch.pxd, point by point, each with random entries or on a machine."""
from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any, Literal

from pykmm.conformance.guard import note
from pykmm.conformance.report import Failure, limited
from pykmm.conformance.semantics import base_of
from pykmm.errors import InvariantViolation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pykmm.conformance.subject import Subject
    from pykmm_ext.arch import Arch

    Found = tuple[str, list[Failure]]

_READ, _WRITE, _EXEC, _SHARED = 1, 2, 4, 8
_ACCESSES = ("read", "write", "execution")
_CHANGES = ("pte_mkwrite", "pte_wrprotect", "pte_mkdirty", "pte_mkclean", "pte_mkyoung", "pte_mkold", "pte_mkspecial")
_STATE = ("pte_dirty", "pte_young", "pte_special", "pte_soft_dirty")


class _Entries:
    """The entry functions of an arch by name."""

    def __init__(self, subject: Subject, name: str) -> None:
        from pykmm_ext.machine.machine_test import entry

        self.arch: Arch = subject.make_arch()
        self._entry = entry
        self.rng = random.Random(f"{name} {subject.seed}")
        self.geometry: dict[str, Any] = self.arch.geometry()
        self.wrong: list[str] = []
        self.count = subject.effort.entries

    def __call__(self, what: str, a: int = 0, b: int = 0) -> int:
        return int(self._entry(self.arch, what, a, b))

    def flags(self) -> int:
        return self.rng.randrange(16)

    def pfn(self) -> int:
        """Of a frame that a machine of at most 64 TiB may have."""
        return self.rng.randrange(1 << self.rng.randrange(1, 47 - int(self.geometry["page_shift"])))

    def pte(self, flags: int, changes: int = 4) -> int:
        """A present entry after some changes that the mm makes."""
        value = self("pfn_pte", self.pfn(), self("vm_get_page_prot", flags))
        for _ in range(self.rng.randrange(changes + 1)):
            value = self(self.rng.choice(_CHANGES), value)
        return value

    def expect(self, good: object, text: str) -> None:
        if not good:
            self.wrong.append(text)

    def found(self, detail: str) -> Found:
        return detail, limited([Failure(text) for text in dict.fromkeys(self.wrong)], 6)


def check_interface(subject: Subject) -> Found:
    """The table is whole."""
    from pykmm_ext.arch import Arch
    from pykmm_ext.conformance import arch_table

    made: object = subject.make_arch()
    if not isinstance(made, Arch):
        return "", [Failure(f"the factory gives a {type(made).__name__}, not a pykmm_ext.arch.Arch")]
    table = arch_table(made)
    if table is None:
        return "", [Failure(f"{type(made).__name__} has set no arch_ops: self.ops is NULL")]
    wrong = [f"no {name}: every member of arch_ops is required" for name, there in table["members"].items()
             if not there]
    if table["size"] > table["known_size"]:
        wrong.append(f"ops.size is {table['size']}, this pykmm's arch_ops has {table['known_size']} bytes: compiled "
                     "against a later pykmm")
    if not made.name or table["name"] != made.name:
        wrong.append(f"ops.name is {table['name']!r}, the object's name {made.name!r}")
    if not made.description:
        wrong.append("no description: pykmm list has nothing to say about it")
    if made.memory_model not in ("tso", "power"):
        wrong.append(f"memory model {made.memory_model!r} is none of the check engine's for arches: tso, power")
    return f"{sum(table['members'].values())} of {len(table['members'])} members", [Failure(text) for text in wrong]


def check_geometry(subject: Subject) -> Found:
    """Points 1 and 2: levels and limits fit together."""
    e = _Entries(subject, "geometry")
    g = e.geometry
    shifts, bits, page = g["level_shift"], g["level_bits"], 1 << g["page_shift"]
    e.expect(shifts[0] == g["page_shift"], f"level_shift[0] is {shifts[0]}, page_shift {g['page_shift']}")
    for level in range(1, g["levels"]):
        e.expect(shifts[level] == shifts[level - 1] + bits[level - 1],
                 f"level_shift[{level}] is {shifts[level]}: a table of level {level - 1} maps 2**"
                 f"{shifts[level - 1] + bits[level - 1]} bytes")
    top = 1 << (shifts[-1] + bits[-1])
    e.expect(g["task_size"] <= top, f"task_size {g['task_size']:#x} is beyond what the root maps, {top:#x}")
    for name in ("task_size", "mmap_base", "stack_top", "mmap_min_addr"):
        e.expect(g[name] % page == 0, f"{name} {g[name]:#x} is no multiple of the page size {page:#x}")
    e.expect(g["mmap_min_addr"] < g["mmap_base"] <= g["task_size"],
             f"mmap_base {g['mmap_base']:#x} is not between mmap_min_addr and task_size")
    e.expect(g["stack_top"] <= g["task_size"], f"stack_top {g['stack_top']:#x} is beyond task_size")
    return e.found(f"{g['levels']} levels, pages of {page >> 10}K, {top.bit_length() - 1}-bit addresses")


def check_entries(subject: Subject) -> Found:
    """Points 3, 4 and 5: leaf entries keep what they are given, and permissions mean what they say."""
    e = _Entries(subject, "entries")
    e.expect(e("pte_none", 0), "pte_none(0) is false")
    e.expect(not e("pte_present", 0), "pte_present(0) is true: an empty entry is taken for a page")
    for _ in range(e.count):
        flags, pfn = e.flags(), e.pfn()
        prot = e("vm_get_page_prot", flags)
        pte = e("pfn_pte", pfn, prot)
        shown = f"pfn {pfn:#x} with VM_ flags {flags:#x} ({pte:#x})"
        e.expect(e("pte_pfn", pte) == pfn, f"{shown}: pte_pfn is {e('pte_pfn', pte):#x}")
        e.expect(e("pte_present", pte) and not e("pte_none", pte), f"{shown}: not present")
        none = not flags & (_READ | _WRITE | _EXEC)
        e.expect(bool(e("pte_protnone", pte)) == none,
                 f"{shown}: pte_protnone is {e('pte_protnone', pte)}, PROT_NONE {none}")
        may = [bool(e("access_permitted", pte, access)) for access in range(3)]
        wanted = [bool(flags & _READ), bool(flags & _WRITE and flags & _SHARED), bool(flags & _EXEC)]
        for access, name in enumerate(_ACCESSES):
            if none or (access and not wanted[access]):
                e.expect(not may[access], f"{shown}: {name} is permitted")
            elif wanted[access]:
                e.expect(may[access], f"{shown}: {name} is not permitted")
        e.expect(bool(e("pte_write", pte)) == wanted[1],
                 f"{shown}: pte_write is {e('pte_write', pte)}; private writable mappings begin read-only (COW), "
                 "shared ones writable")
    return e.found(f"{e.count} random entries: frame, presence, PROT_NONE, permissions, COW")


def check_changes(subject: Subject) -> Found:
    """Point 3: each change changes one thing, and pte_modify permissions only."""
    e = _Entries(subject, "changes")
    effect = {"pte_mkdirty": ("pte_dirty", 1), "pte_mkclean": ("pte_dirty", 0), "pte_mkyoung": ("pte_young", 1),
              "pte_mkold": ("pte_young", 0), "pte_mkspecial": ("pte_special", 1), "pte_mkwrite": ("pte_write", 1),
              "pte_wrprotect": ("pte_write", 0)}
    for _ in range(e.count):
        flags = e.rng.randrange(1, 8) | e.rng.choice((0, _SHARED))
        pte = e.pte(flags)
        for change, (bit, value) in effect.items():
            if change == "pte_mkwrite" and not flags & _WRITE:
                continue
            new = e(change, pte)
            e.expect(bool(e(bit, new)) == bool(value), f"{change}({pte:#x}) is {new:#x}: {bit} is {e(bit, new)}")
            e.expect(e("pte_pfn", new) == e("pte_pfn", pte), f"{change}({pte:#x}) is {new:#x}: another frame")
            for other in ("pte_dirty", "pte_young", "pte_special", "pte_write", "pte_exec"):
                if other != bit:
                    e.expect(e(other, new) == e(other, pte), f"{change}({pte:#x}) is {new:#x}: changes {other}")
        after = e.flags()
        prot = e("vm_get_page_prot", after)
        new = e("pte_modify", pte, prot)
        shown = f"pte_modify({pte:#x}, VM_ flags {after:#x}) is {new:#x}"
        e.expect(e("pte_pfn", new) == e("pte_pfn", pte), f"{shown}: another frame")
        for bit in _STATE:
            e.expect(e(bit, new) == e(bit, pte), f"{shown}: changes {bit}")
        fresh = e("pfn_pte", e("pte_pfn", pte), prot)
        for access, name in enumerate(_ACCESSES):
            e.expect(e("access_permitted", new, access) == e("access_permitted", fresh, access),
                     f"{shown}: {name} is not permitted as in a new entry of that protection")
    return e.found(f"{e.count} random entries, each changed in {len(effect) + 1} ways")


def check_tables(subject: Subject) -> Found:
    """Point 6: entries that point to tables."""
    e = _Entries(subject, "tables")
    shift = int(e.geometry["page_shift"])
    for level in range(1, int(e.geometry["levels"])):
        e.expect(e("table_none", 0), "table_none(0) is false")
        e.expect(not e("table_descend", 0, level), f"table_descend(0, {level}) leads somewhere")
        for _ in range(e.count):
            paddr = e.pfn() << shift
            value = e("mk_table", paddr, level)
            shown = f"mk_table({paddr:#x}, {level}) is {value:#x}"
            e.expect(e("table_paddr", value) == paddr, f"{shown}: table_paddr is {e('table_paddr', value):#x}")
            for what in ("table_none", "table_bad"):
                e.expect(not e(what, value), f"{shown}: {what} is true")
            e.expect(not e("table_leaf", value, level), f"{shown}: table_leaf is true")
            e.expect(paddr == 0 or e("table_descend", value, level) == paddr,
                     f"{shown}: table_descend is {e('table_descend', value, level):#x}")
            other = value ^ (1 << e.rng.randrange(64))
            stop = any(e(what, other, level) for what in ("table_none", "table_bad", "table_leaf"))
            down = e("table_descend", other, level)
            e.expect(down == (0 if stop else e("table_paddr", other)),
                     f"table_descend({other:#x}, {level}) is {down:#x}, not what table_none, table_bad, table_leaf and "
                     "table_paddr say together")
    return e.found(f"{e.count} random entries of every level")


def check_walk(subject: Subject) -> Found:
    """Point 9: the MMU agrees with access_permitted on the leaf, and changes nothing but accessed and dirty."""
    from pykmm_ext.machine.machine_test import Rig

    e = _Entries(subject, "walk")
    shift, page = int(e.geometry["page_shift"]), subject.page
    rig = Rig(e.arch, 1, 2048 * page)
    start = base_of(subject) - 8 * page
    space = rig.space(start, start + 16 * page, _READ | _WRITE | _EXEC)
    rig.switch(0, space)
    frame = rig.alloc(0)
    assert frame is not None
    for turn in range(min(e.count, 5_000)):
        address = start + e.rng.randrange(16) * page
        flags, access = e.flags(), turn % 3
        pte = e("pfn_pte", frame, e("vm_get_page_prot", flags))
        for _ in range(e.rng.randrange(4)):
            change = e.rng.choice([c for c in _CHANGES if c != "pte_mkwrite" or flags & _WRITE])
            pte = e(change, pte)
        if turn % 10 == 9:
            pte = 0
        space.set_entry(address, 0, pte)
        word = rig.hw_walk(0, address, access)
        shown = f"a walk for {_ACCESSES[access]} over {pte:#x}"
        may = bool(pte and e("access_permitted", pte, access))
        e.expect(bool(word) == may, f"{shown} {'succeeds' if word else 'faults'}, access_permitted is {may}")
        after = space.set_entry(address, 0, 0)
        if not word:
            e.expect(after == pte, f"{shown} faults and leaves {after:#x} behind")
            continue
        e.expect(word >> shift == frame, f"{shown} leads to frame {word >> shift:#x}, not {frame:#x}")
        expected = e("pte_mkyoung", pte)
        dirty = access == 1 or e("pte_dirty", pte)
        e.expect(e("pte_young", after), f"{shown} leaves {after:#x}: not accessed")
        e.expect(bool(e("pte_dirty", after)) == bool(dirty),
                 f"{shown} leaves {after:#x}: pte_dirty is not {bool(dirty)}")
        if not dirty or e("pte_dirty", pte):
            e.expect(after == expected, f"{shown} leaves {after:#x}: other bits than accessed and dirty have changed")
        e.expect(not (word >> 1 & 1) or dirty, f"{shown}: the TLB may write although the entry is clean")
        for other in range(3):
            e.expect(not (word >> other & 1) or e("access_permitted", after, other),
                     f"{shown}: the TLB permits {_ACCESSES[other]}, the entry does not")
    rig.switch(0, None)
    rig.put(frame, 0)
    space.free(0)
    leaks = {what: count for what, count in rig.destroy().items() if count}
    e.expect(not leaks, f"page tables of an address space that is gone: {leaks} left")
    return e.found(f"{min(e.count, 5_000)} walks against access_permitted")


def _flushes(page: int, start: int) -> Iterable[tuple[str, int, int]]:
    yield "page", start, start + page
    yield "range", start, start + 4 * page
    yield "range", start, start + 16 * page
    yield "mm", start, start + 16 * page


def check_flush(subject: Subject) -> Found:
    """Point 7: after a flush no CPU translates through an entry that was there before."""
    from pykmm_ext.machine.machine_test import Rig

    e = _Entries(subject, "flush")
    page, cpus = subject.page, 3
    start = base_of(subject) - 8 * page
    done = 0
    for what, first, last in _flushes(page, start):
        for caller in range(cpus):
            note(f"flush_tlb_{what} by CPU {caller}")
            rig = Rig(e.arch, cpus, 2048 * page)
            space = rig.space(start, start + 16 * page, _READ | _WRITE | _SHARED)
            for cpu in range(cpus):
                rig.switch(cpu, space)
                for address in range(first, last, page):
                    rig.touch(cpu, address, 1)
            frames = [space.set_entry(address, 0, 0) for address in range(first, last, page)]
            space.flush(caller, what, first, last)
            space.answer(2)     # VM_FAULT_SIGBUS: nobody fills the entries again
            for cpu in range(cpus):
                for address in range(first, last, page):
                    e.expect(rig.touch(cpu, address, 0) != 0,
                             f"flush_tlb_{what} by CPU {caller} of {(last - first) // page} pages: CPU {cpu} still "
                             f"translates page {(address - start) // page}")
                    done += 1
            for cpu in range(cpus):
                rig.switch(cpu, None)
            for pte in frames:
                rig.put(e("pte_pfn", pte), caller)
            space.free(0)
            rig.destroy()
    return e.found(f"{done} translations after flushes of a page, of ranges and of an address space, by every CPU")


def check_table_freeing(subject: Subject) -> Found:
    """Point 8: tables of what is unmapped go back, at once or after a grace period, and are not lost."""
    counts = {"nr_pgtable_alloc": 0, "nr_pgtable_free": 0}
    wrong = ""
    span, page, base = subject.table_span, subject.page, base_of(subject)
    try:
        with subject.machine(cpus=2) as machine:
            mm = machine.mm()
            machine.validate()
            frames = machine.vmstat["nr_used_frames"]
            for turn in range(4):
                for n in range(4):
                    mm.mmap(base + n * span - page, 2 * page, 3, 0x32)
                    mm.touch(base + n * span - page, 2 * page, "w", cpu=n % 2)
                for n in range(4):
                    mm.munmap(base + n * span - page, 2 * page, cpu=(n + turn) % 2)
                counts = machine.vmstat
                try:
                    machine.validate()
                except InvariantViolation as error:
                    wrong = f"after everything was unmapped: {error}"
                    break
                used = machine.vmstat["nr_used_frames"]
                if used != frames:
                    wrong = (f"{used - frames} frames more in use after everything was unmapped and every grace period "
                             "is over")
                    break
            mm.exit()
    except InvariantViolation as error:
        wrong = wrong or str(error)
    return (f"{counts['nr_pgtable_alloc']} page tables made, {counts['nr_pgtable_free']} freed",
            [Failure(wrong)] if wrong else [])


def check_byte_order(subject: Subject) -> Found:
    """Point 10: entries lie in memory as big_endian says; the walk of the mm finds them there."""
    e = _Entries(subject, "byte order")
    with subject.machine(cpus=1, frames=2048) as machine:
        mm = machine.mm()
        address = base_of(subject)
        mm.mmap(address, subject.page, 3, 0x32)
        mm.store(address, b"found through the tables")
        steps = mm.walk(address)
        e.expect(len(steps) == e.geometry["levels"], f"a walk of {len(steps)} levels, not {e.geometry['levels']}")
        order: Literal["big", "little"] = "big" if e.geometry["big_endian"] else "little"
        for step, (level, table, index, raw) in enumerate(steps):
            data = machine.read_physical(table + 8 * index, 8)
            word = int.from_bytes(data, sys.byteorder)      # what the entry functions take: as it lies in memory
            e.expect(int.from_bytes(data, order) == raw,
                     f"level {level}: memory has {data.hex()}, which is not {raw:#x} read as {order}-endian")
            if level:
                to = e("table_paddr", word)
                e.expect(step + 1 < len(steps) and to == steps[step + 1][1],
                         f"level {level}: {word:#x} leads to {to:#x}, and the walk went elsewhere")
                continue
            pfn = e("pte_pfn", word)
            at = pfn * subject.page
            e.expect(at & raw == at, f"the entry {data.hex()}, read as {order}-endian, does not have the frame's "
                                     f"address {at:#x}")
            text = machine.read_physical(at, 24) if at < machine.memory else b""
            e.expect(text == b"found through the tables", f"frame {pfn:#x} has {text!r}")
        mm.exit()
    return e.found("every level of a walk read back from memory")


def names() -> dict[str, tuple[str, Callable[[Subject], Found]]]:
    """By name: what it asks, and the function."""
    return {
        "interface": ("the table and the names are what a machine takes for granted", check_interface),
        "geometry": ("levels, shifts and limits fit together (points 1 and 2)", check_geometry),
        "entries": ("leaf entries keep frame and permissions (points 3 to 5)", check_entries),
        "changes": ("a change of an entry changes one thing (point 3)", check_changes),
        "tables": ("entries that point to tables (point 6)", check_tables),
        "walk": ("the MMU agrees with access_permitted (point 9)", check_walk),
        "byte-order": ("entries lie in memory as big_endian says (point 10)", check_byte_order),
        "flush": ("no stale translation after a flush (point 7)", check_flush),
        "table-freeing": ("page tables go back, and not too early (point 8)", check_table_freeing),
    }
