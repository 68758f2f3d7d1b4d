# SPDX-License-Identifier: GPL-2.0-only
"""mm/gup.c and include/linux/pgtable.h as a strategy in Python calls them: walks of page tables without a lock, and the
references that they take. mm/gup has the argument, and who runs against whom.

On the check engine a load of an entry depends on the load that led to it (address dependency), as it does in C: an
EntryHandle knows which one that was.
"""
cimport cython

from pykmm_ext.kernel.atomic cimport kmm_emit
from pykmm_ext.machine.cpu cimport KMM_EV_GUP, NR_FOLL_PIN_ACQUIRED, count_vm_event, u64
from pykmm_ext.mm cimport gup
from pykmm_ext.mm.lockless_walk cimport (
    begin_lockless_pgtbl_walk as mm_begin_walk, end_lockless_pgtbl_walk as mm_end_walk,
)
from pykmm_ext.mm.mm_types cimport (
    FOLL_PIN, FOLL_WRITE, GUP_PIN_COUNTING_BIAS, KMM_ACCESS_READ, KMM_ACCESS_WRITE, arch_ops, machine, machine_of,
    pfn_to_page,
)
from pykmm_ext.mm.page_alloc cimport try_get_page_refs
from pykmm_ext.mm.pgtable cimport mm_find_pmd as mm_find_pmd_entry, table_entry
from pykmm_ext.pykernel.call cimport (
    HELD_GUP_WALK, HELD_PAGE, SPINS, call, give_back, over_handle, room, same, stale,
)
from pykmm_ext.pykernel.memory cimport PageHandle, begin_walk, end_walk, page_handle, walking

cdef extern from *:
    """
    #include "kmm/engine.h"
    static inline unsigned long kmm_python_load_dep(Cpu *cpu, const unsigned long *p, u32 dep)
    {
        if (cpu->engine)
            return cpu->engine->load_dep(cpu, p, sizeof(*p), KMM_RELAXED, dep);
        return __atomic_load_n(p, __ATOMIC_RELAXED);
    }
    static inline u32 kmm_python_last_load(Cpu *cpu) { return cpu->engine ? cpu->engine->last_load(cpu) : 0; }
    """
    unsigned long kmm_python_load_dep(Cpu *cpu, const unsigned long *p, u32 dep) nogil
    u32 kmm_python_last_load(Cpu *cpu) nogil


# ---- contexts of the next: as the kernel function that each calls ----

# p: an EntryHandle's mm, and where its state goes.
cdef struct find_pmd:
    mm_struct *mm
    entry_state e


# Context: as mm_find_pmd().
cdef u64 do_find_pmd(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef find_pmd *f = <find_pmd *>p
    f.e.p = mm_find_pmd_entry(cpu, f.mm, a)
    f.e.dep = kmm_python_last_load(cpu)     # of the entry above it
    f.e.loaded = 0
    return f.e.p != NULL


# Context: as READ_ONCE().
cdef u64 do_read_entry(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef entry_state *e = <entry_state *>p
    cdef unsigned long value = kmm_python_load_dep(cpu, e.p, e.dep)
    e.loaded = kmm_python_last_load(cpu)
    return value


# Context: as begin_lockless_pgtbl_walk().
cdef u64 do_begin_walk(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    mm_begin_walk(cpu, <mm_struct *>p)
    return 0


# Context: as end_lockless_pgtbl_walk().
cdef u64 do_end_walk(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    mm_end_walk(cpu, <mm_struct *>p)
    return 0


# Context: as try_get_page_refs().
cdef u64 do_try_get(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return try_get_page_refs(cpu, <page *>p, <u32>a)


# Context: as gup_must_unshare().
cdef u64 do_must_unshare(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return gup.gup_must_unshare(cpu, <page *>p, <unsigned int>a)


# A reference to the page, which a walk keeps; a = FOLL_*, b = the page table.
cdef u64 do_keep(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    if cpu.engine != NULL:
        kmm_emit(cpu, KMM_EV_GUP, p, b)
    if a & FOLL_PIN:
        count_vm_event(cpu, NR_FOLL_PIN_ACQUIRED)
    return 0


cdef struct gup_call:
    gup_function fn
    mm_struct *mm
    unsigned long start, nr_pages
    page **pages


# Context: as strategy_ops.gup_fast.
cdef u64 do_gup(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef gup_call *g = <gup_call *>p
    return <u64>g.fn(cpu, g.mm, g.start, g.nr_pages, <unsigned int>a, g.pages)


# Context: as unpin_user_pages().
cdef u64 do_unpin(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    gup.unpin_user_pages(cpu, <page **>p, a, <unsigned int>b, False)
    return 0


# ---- walks ----

def begin_lockless_pgtbl_walk(CpuHandle cpu not None, MmHandle mm not None):
    """Page tables that are found from now on are not freed before end_lockless_pgtbl_walk(); as walk_begin(), and counted
    where the address space counts its walks. No sleeping inside; does not nest."""
    begin_walk(cpu, mm, do_begin_walk, HELD_GUP_WALK, "begin_lockless_pgtbl_walk()")


def end_lockless_pgtbl_walk(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    end_walk(cpu, mm, do_end_walk, HELD_GUP_WALK, "end_lockless_pgtbl_walk()")


@cython.final
@cython.freelist(8)
@cython.no_gc
cdef class EntryHandle:
    """An entry of a page table: what mm_find_pmd() and pte_offset() return. READ_ONCE() reads it."""

    def __cinit__(self):
        self.on = over_handle()

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    def __repr__(self):
        return "<EntryHandle, over>" if self.on.cpu == NULL else f"<EntryHandle of level {self.level}>"


cdef EntryHandle entry_handle(CpuHandle on, mm_struct *mm, unsigned long address, u32 level):
    cdef EntryHandle h = EntryHandle.__new__(EntryHandle)
    h.on = on
    h.mm = mm
    h.address = address
    h.level = level
    h.table = 0
    return h


def mm_find_pmd(CpuHandle cpu not None, MmHandle mm not None, unsigned long address):
    """The entry that leads to the table of the page at `address`, or None where a table above it is missing. Lockless."""
    cdef EntryHandle h
    cdef find_pmd f
    same(cpu, mm.on)
    f.mm = mm.mm
    if address >= mm.mm.task_size or not call(cpu, do_find_pmd, &f, address):
        return None
    h = entry_handle(cpu, mm.mm, address, 1)
    h.e = f.e
    return h


def READ_ONCE(CpuHandle cpu not None, EntryHandle entry not None):
    """The entry as the processor has it: 64 bits of the arch's own format."""
    same(cpu, entry.on)
    return call(cpu, do_read_entry, &entry.e)


def pte_offset(CpuHandle cpu not None, EntryHandle pmd not None, unsigned long pmdval):
    """The entry of the page, in the table to which `pmd` led when its value was `pmdval`, the newest that READ_ONCE() of
    it has returned. None: that leads to no table. Reads nothing."""
    cdef EntryHandle h
    cdef unsigned long table
    cdef machine *m
    same(cpu, pmd.on)
    if pmd.level != 1:
        raise RuntimeError("pte_offset(): this entry leads to no table; it is a page's")
    m = pmd.mm.machine
    table = m.arch.table_descend(pmdval, 1)
    if table == 0:
        return None
    if table >> m.arch.page_shift >= m.nr_frames:
        raise RuntimeError(f"pte_offset(): {pmdval:#x} leads out of the machine's memory: it is no value of such an entry")
    h = entry_handle(cpu, pmd.mm, pmd.address, 0)
    h.table = m.arch.table_paddr(pmdval)
    h.e.p = table_entry(pmd.mm, table, 0, pmd.address)
    h.e.dep = pmd.e.loaded
    h.e.loaded = 0
    return h


# Context: GIL held; the callback is under way.
cdef const arch_ops *arch_of(CpuHandle cpu) except NULL:
    if cpu.cpu == NULL:
        stale()
    return machine_of(cpu.cpu).arch


def pte_access_permitted(CpuHandle cpu not None, unsigned long pte, bint write):
    """Does an entry with this value let a program read, or write?"""
    return bool(arch_of(cpu).access_permitted(pte, KMM_ACCESS_WRITE if write else KMM_ACCESS_READ))


def pte_special(CpuHandle cpu not None, unsigned long pte):
    """Is it an entry without a page to count: the zero page's?"""
    return bool(arch_of(cpu).pte_special(pte))


# ---- references ----

def try_grab_page(CpuHandle cpu not None, EntryHandle ptep not None, unsigned long pte, unsigned int gup_flags):
    """The page that an entry with the value `pte` maps, with a reference as `gup_flags` (``FOLL_``) want it; None: it is
    free, or has too many. The entry may be another one by then: look again, and put_page() if so. A full barrier."""
    cdef u32 refs = GUP_PIN_COUNTING_BIAS if gup_flags & FOLL_PIN else 1
    cdef PageHandle found
    cdef machine *m
    cdef unsigned long pfn
    cdef page *pg
    same(cpu, ptep.on)
    room(cpu)
    m = ptep.mm.machine
    pfn = m.arch.pte_pfn(pte)
    if ptep.level != 0 or not m.arch.pte_present(pte) or pfn >= m.nr_frames:
        raise RuntimeError(f"try_grab_page(): {pte:#x} maps no page")
    pg = pfn_to_page(m, pfn)
    if not call(cpu, do_try_get, pg, refs):
        return None
    found = page_handle(cpu, pg, refs)
    found.table = ptep.table
    return found


def gup_must_unshare(CpuHandle cpu not None, PageHandle page not None, unsigned long pte, unsigned int gup_flags):
    """May a pin for reading not have the page as it is, since others map it as well? After the second look at the entry."""
    same(cpu, page.on)
    if arch_of(cpu).pte_write(pte):
        return False
    return bool(call(cpu, do_must_unshare, page.pg, gup_flags))


@cython.final
@cython.no_gc
cdef class PageArray:
    """What gup_fast() fills: pages of consecutive addresses, each with its reference. ``len()`` = how many there are."""

    def __cinit__(self):
        self.on = over_handle()

    def __init__(self):
        raise TypeError("made by pykmm, for gup_fast()")

    def append(self, PageHandle page not None):
        """Hand the page over, with the reference that try_grab_page() took."""
        same(self.on, page.on)
        if self.n == self.nr_pages:
            raise RuntimeError(f"append(): gup_fast() was asked for {self.nr_pages} pages")
        if page.refs != (<u32>GUP_PIN_COUNTING_BIAS if self.gup_flags & FOLL_PIN else 1):
            raise RuntimeError("append(): the page has no reference such as gup_flags want")
        call(self.on, do_keep, page.pg, self.gup_flags, page.table)
        give_back(self.on, HELD_PAGE, page.pg, "append()", page.refs)
        page.refs = 0
        self.pages[self.n] = page.pg
        self.n += 1

    def __len__(self):
        return self.n

    def __repr__(self):
        return f"<PageArray of {self.nr_pages}, {self.n} there>"


cdef PageArray page_array(CpuHandle on, page **pages, unsigned long nr_pages, unsigned int gup_flags):
    cdef PageArray h = PageArray.__new__(PageArray)
    h.on = on
    h.pages = pages
    h.n = 0
    h.nr_pages = nr_pages
    h.gup_flags = gup_flags
    return h


def unpin_user_pages(CpuHandle cpu not None, PageArray pages not None):
    """Give all of them up: the array is empty afterwards."""
    cdef unsigned long n = pages.n
    same(cpu, pages.on)
    pages.n = 0
    call(cpu, do_unpin, pages.pages, n, pages.gup_flags, SPINS)


cdef object pin_pages(CpuHandle cpu, gup_function fn, MmHandle mm, unsigned long start, unsigned long nr_pages,
                      unsigned int gup_flags, object pages):
    cdef PageArray array
    cdef gup_call g
    cdef long n
    if not isinstance(pages, PageArray):
        raise TypeError(f"expected a PageArray, not {type(pages).__name__}")
    array = pages
    same(cpu, array.on)
    if nr_pages > array.nr_pages - array.n:
        raise RuntimeError(f"there is room for {array.nr_pages - array.n} pages, not {nr_pages}")
    if (gup_flags ^ array.gup_flags) & (FOLL_PIN | FOLL_WRITE):
        raise RuntimeError("gup_flags are others than gup_fast() got")
    if walking(cpu):
        raise RuntimeError(f"lockless_pages_from_mm() on CPU {cpu.cpu.id} inside of another page-table walk")
    if start & ((<unsigned long>1 << mm.mm.arch.page_shift) - 1) or (
            start > mm.mm.task_size or nr_pages > (mm.mm.task_size - start) >> mm.mm.arch.page_shift):
        raise RuntimeError("not all of these pages are a program's")
    g.fn = fn
    g.mm = mm.mm
    g.start = start
    g.nr_pages = nr_pages
    g.pages = array.pages + array.n
    n = <long>call(cpu, do_gup, &g, gup_flags, 0, SPINS)
    array.n += <unsigned long>n
    return n
