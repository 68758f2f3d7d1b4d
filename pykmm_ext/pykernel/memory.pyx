# SPDX-License-Identifier: GPL-2.0-only
"""mm/memory.c and mm/filemap.c as a strategy in Python calls them: faults, speculative ones too, and pages of files.

A speculative fault in Python is one in C, step by step (plugins/strategies/_spf has the reasons): VmFault() captures
the VMA, walk_to_pte() finds the entry, handle_pte_fault() makes the page ready and calls the strategy's pte_map_lock() or
pte_spinlock(), with the same VmFault, where the PTL is to be taken. Those call pte_trylock() between their checks.
"""
cimport cython

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_DEP, READ_ONCE_PTR
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_trylock, spin_unlock
from pykmm_ext.machine.cpu cimport Cpu, u64
from pykmm_ext.mm cimport memory
from pykmm_ext.mm.filemap cimport filemap_get_page, find_get_page as mm_find_get_page
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_KILLABLE, FAULT_FLAG_SPECULATIVE, anon_vma, file, machine_of,
    mm_struct, pmd_t, vm_area_struct,
)
from pykmm_ext.mm.page_alloc cimport put_page_refs
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr, pte_offset, table_entry
from pykmm_ext.mm.speculative cimport walk_begin as mm_walk_begin, walk_end as mm_walk_end
from pykmm_ext.pykernel.call cimport (
    HELD_GUP_WALK, HELD_PAGE, HELD_PTL, HELD_WALK, RUNS, SLEEPS, SPINS, call, give_back, hold, holds, kernel_function,
    over_handle, room, same, stale,
)
from pykmm_ext.pykernel.handles cimport VmaHandle, mm_handle, vma_handle


# ---- contexts of the next: as the kernel function that each calls ----

# Context: as handle_mm_fault().
cdef u64 do_mm_fault(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return memory.handle_mm_fault(cpu, <vm_area_struct *>p, a, <u32>b)


# Context: as handle_pte_fault().
cdef u64 do_pte_fault(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return memory.handle_pte_fault(cpu, <vm_fault *>p)


# Any lock or none; p: a vm_fault with vma and flags. The order is that of plugins/strategies/_spf.
cdef u64 do_capture(Cpu *cpu, void *p, unsigned long address, unsigned long b) noexcept nogil:
    cdef vm_fault *vmf = <vm_fault *>p
    cdef vm_area_struct *vma = vmf.vma
    cdef u32 shift = machine_of(cpu).arch.page_shift
    vmf.vma_flags = READ_ONCE(cpu, &vma.vm_flags)
    vmf.vma_start = READ_ONCE(cpu, &vma.vm_start)
    vmf.vma_end = READ_ONCE(cpu, &vma.vm_end)
    vmf.vma_page_prot = READ_ONCE(cpu, <unsigned long *>&vma.vm_page_prot)
    vmf.anon_vma = <anon_vma *>READ_ONCE_PTR(cpu, &vma.anon_vma)
    vmf.address = address & ~((<unsigned long>1 << shift) - 1)
    vmf.pgoff = ((vmf.address - vmf.vma_start) >> shift) + READ_ONCE(cpu, &vma.vm_pgoff)
    return 0


# Tables cannot be freed meanwhile. 0: there is no page table.
cdef u64 do_walk(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef vm_fault *vmf = <vm_fault *>p
    cdef mm_struct *mm = vmf.vma.vm_mm
    cdef pmd_t *pmd = mm_find_pmd(cpu, mm, vmf.address)
    cdef unsigned long table
    if pmd == NULL:
        return 0
    vmf.orig_pmd = READ_ONCE_DEP(cpu, pmd, 1)
    table = mm.arch.table_descend(vmf.orig_pmd, 1)
    if table == 0:
        return 0
    vmf.orig_pte = READ_ONCE_DEP(cpu, table_entry(mm, table, 0, vmf.address), 1)
    vmf.pmd = pmd
    return 1


# Context: as READ_ONCE().
cdef u64 do_pmd_same(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef vm_fault *vmf = <vm_fault *>p
    return READ_ONCE(cpu, vmf.pmd) == vmf.orig_pmd


# The table cannot be freed meanwhile; a = spin.
cdef u64 do_pte_lock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef vm_fault *vmf = <vm_fault *>p
    cdef mm_struct *mm = vmf.vma.vm_mm
    vmf.ptl = pte_lockptr(cpu, mm, vmf.orig_pmd)
    if a:
        spin_lock(cpu, vmf.ptl)
    elif not spin_trylock(cpu, vmf.ptl):
        return 0
    vmf.pte = pte_offset(mm, vmf.orig_pmd, vmf.address)
    return 1


# Context: as spin_unlock().
cdef u64 do_pte_unlock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    spin_unlock(cpu, (<vm_fault *>p).ptl)
    return 0


# Context: as walk_begin().
cdef u64 do_walk_begin(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    mm_walk_begin(cpu, (<mm_struct *>p).arch)
    return 0


# Context: as walk_end().
cdef u64 do_walk_end(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    mm_walk_end(cpu, (<mm_struct *>p).arch)
    return 0


# Context: as find_get_page().
cdef u64 do_find_get_page(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef vm_fault *vmf = <vm_fault *>p
    cdef file *f = <file *>READ_ONCE_PTR(cpu, &vmf.vma.vm_file)
    return <u64>mm_find_get_page(cpu, &f.f_mapping, vmf.pgoff) if f != NULL else 0


# What became of a page that was asked for; for do_filemap_fault().
cdef struct page_result:
    vm_fault *vmf
    int major
    u32 err


# Context: as filemap_get_page().
cdef u64 do_filemap_fault(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef page_result *r = <page_result *>p
    cdef file *f = <file *>READ_ONCE_PTR(cpu, &r.vmf.vma.vm_file)
    return <u64>filemap_get_page(cpu, &f.f_mapping, r.vmf.pgoff, &r.major, &r.err) if f != NULL else 0


# Context: as put_page_refs().
cdef u64 do_put_page(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    put_page_refs(cpu, <page *>p, <u32>a)
    return 0


# ---- pages ----

@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class PageHandle:
    """A page (struct page) to which the callback holds a reference: until put_page(), or until it is handed over."""

    def __cinit__(self):
        self.on = over_handle()

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    def __eq__(self, other):
        return isinstance(other, PageHandle) and (<PageHandle>other).pg == self.pg

    def __hash__(self):
        return hash(<size_t>self.pg)

    def __repr__(self):
        return "<PageHandle, over>" if self.on.cpu == NULL or not self.refs else "<PageHandle>"


cdef PageHandle page_handle(CpuHandle on, page *pg, u32 refs):
    cdef PageHandle h = PageHandle.__new__(PageHandle)
    h.on = on
    h.pg = pg
    h.refs = refs
    h.table = 0
    h.major = False
    hold(on, HELD_PAGE, pg, refs)
    return h


def put_page(CpuHandle cpu not None, PageHandle page not None):
    """Give the reference up."""
    cdef u32 refs = page.refs
    same(cpu, page.on)
    if not refs:
        raise RuntimeError("put_page(): this reference has been given up already")
    give_back(cpu, HELD_PAGE, page.pg, "put_page()", refs)
    page.refs = 0
    call(cpu, do_put_page, page.pg, refs, 0, SPINS)


# ---- faults ----

def access_error(unsigned long vm_flags, unsigned int flags):
    """Is an access with ``FAULT_FLAG_`` `flags` one that a VMA with `vm_flags` does not allow?"""
    return memory.access_error(vm_flags, flags)


def handle_mm_fault(CpuHandle cpu not None, VmaHandle vma not None, unsigned long address, unsigned int flags):
    """Resolve a fault inside of `vma`, whose access was checked: ``VM_FAULT_`` bits. mmap_sem, or whatever the strategy
    keeps writers out with, must be held; may sleep. Without mmap_sem the VMA needs its anon_vma already."""
    same(cpu, vma.on)
    return call(cpu, do_mm_fault, vma.vma, address, flags, SLEEPS)


@cython.final
cdef class VmFault:
    """A speculative fault (struct vm_fault) at `address`, which captures what it needs of the VMA: from then on the VMA may
    change, and the fault goes by what it was. Who makes one checks afterwards that nobody wrote meanwhile, and that
    `address` lies between vma_start and vma_end. `sequence` is kept for these checks.

    The attributes are what was captured, and what walk_to_pte() has found. ``private``: the strategy's own, any object;
    vmf->strategy_data in C.
    """

    def __cinit__(self, CpuHandle cpu not None, VmaHandle vma not None, unsigned long address, unsigned int flags,
                  unsigned int sequence=0):
        self.on = cpu
        same(cpu, vma.on)
        self.walked = self.busy = False
        self.vmf.vma = vma.vma
        self.vmf.flags = (flags & ~(<unsigned int>FAULT_FLAG_ALLOW_RETRY | <unsigned int>FAULT_FLAG_KILLABLE)
                          | <unsigned int>FAULT_FLAG_SPECULATIVE)
        self.vmf.sequence = sequence
        self.vmf.strategy_data = <void *>self
        call(cpu, do_capture, &self.vmf, address)

    @property
    def vma(self):
        """The VMA."""
        if self.on.cpu == NULL:
            stale()
        return vma_handle(self.on, self.vmf.vma)

    @property
    def mm(self):
        """The address space."""
        if self.on.cpu == NULL:
            stale()
        return mm_handle(self.on, self.vmf.vma.vm_mm)

    @property
    def address(self):
        """First address of the page."""
        return self.vmf.address

    @property
    def pgoff(self):
        """Page offset in the file, or in the anonymous range."""
        return self.vmf.pgoff

    @property
    def flags(self):
        """``FAULT_FLAG_`` bits."""
        return self.vmf.flags

    @property
    def sequence(self):
        """What it was made with: a count that says whether the VMA has changed."""
        return self.vmf.sequence

    @property
    def vma_flags(self):
        """vm_flags when the fault looked at the VMA; the next two likewise."""
        return self.vmf.vma_flags

    @property
    def vma_start(self):
        """First address of the VMA."""
        return self.vmf.vma_start

    @property
    def vma_end(self):
        """The address after its last."""
        return self.vmf.vma_end

    @property
    def orig_pmd(self):
        """The entry that led to the page table, as walk_to_pte() saw it; 0 before."""
        return self.vmf.orig_pmd

    @property
    def orig_pte(self):
        """The entry of the page, as walk_to_pte() saw it; 0 before."""
        return self.vmf.orig_pte

    def __repr__(self):
        return "<VmFault, over>" if self.on.cpu == NULL else f"<VmFault at {self.vmf.address:#x}>"


cdef bint walking(CpuHandle on):
    return holds(on.held, HELD_WALK, NULL) or holds(on.held, HELD_GUP_WALK, NULL)


cdef int begin_walk(CpuHandle cpu, MmHandle mm, kernel_function fn, u32 kind, str what) except -1:
    same(cpu, mm.on)
    room(cpu)
    if walking(cpu):
        raise RuntimeError(f"{what} on CPU {cpu.cpu.id} inside of another page-table walk")
    call(cpu, fn, mm.mm)
    hold(cpu, kind, mm.mm)
    return 0


cdef int end_walk(CpuHandle cpu, MmHandle mm, kernel_function fn, u32 kind, str what) except -1:
    same(cpu, mm.on)
    give_back(cpu, kind, mm.mm, what)
    call(cpu, fn, mm.mm)
    return 0


def walk_begin(CpuHandle cpu not None, MmHandle mm not None):
    """Page tables that are found from now on are not freed before walk_end(): IRQs off and, where the arch frees tables
    by RCU, an RCU section. No sleeping inside; does not nest."""
    begin_walk(cpu, mm, do_walk_begin, HELD_WALK, "walk_begin()")


def walk_end(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    end_walk(cpu, mm, do_walk_end, HELD_WALK, "walk_end()")


def walk_to_pte(CpuHandle cpu not None, VmFault vmf not None):
    """Find the entry of the fault's page, and allocate nothing: False where a page table is missing. Between walk_begin()
    and walk_end(). No kernel function: handle_speculative_fault() of the series does it in its body."""
    same(cpu, vmf.on)
    not_busy(vmf, "walk_to_pte()")
    vmf.walked = call(cpu, do_walk, &vmf.vmf)
    return vmf.walked


# Context: GIL held. What belongs into pte_map_lock() or pte_spinlock(), and into handle_fault() before them.
cdef int not_busy(VmFault vmf, str what) except -1:
    if vmf.busy:
        raise RuntimeError(f"{what}: handle_pte_fault() is under way with this VmFault")
    return 0


cdef int must_walk(VmFault vmf, str what) except -1:
    if not vmf.walked:
        raise RuntimeError(f"{what}: walk_to_pte() has found no page table for this VmFault")
    return 0


def pmd_same(CpuHandle cpu not None, VmFault vmf not None):
    """Does the entry that led to the page table still have the value that walk_to_pte() saw?"""
    same(cpu, vmf.on)
    must_walk(vmf, "pmd_same()")
    return bool(call(cpu, do_pmd_same, &vmf.vmf))


# Context: GIL held, given up while it spins.
cdef bint take_ptl(CpuHandle cpu, VmFault vmf, bint spin, str what) except -1:
    same(cpu, vmf.on)
    must_walk(vmf, what)
    room(cpu)
    if holds(cpu.held, HELD_PTL, NULL):
        raise RuntimeError(f"{what} on CPU {cpu.cpu.id}, which holds a page-table lock already")
    if not call(cpu, do_pte_lock, &vmf.vmf, spin, 0, SPINS if spin else RUNS):
        return False
    hold(cpu, HELD_PTL, vmf.vmf.ptl)
    return True


def pte_trylock(CpuHandle cpu not None, VmFault vmf not None):
    """Take the lock of the fault's page table if that needs no waiting: True = it is taken. Only between walk_begin() and
    walk_end(): the lock lies in the table's struct page. spin_trylock(pte_lockptr()) in C."""
    return take_ptl(cpu, vmf, False, "pte_trylock()")


def pte_lock(CpuHandle cpu not None, VmFault vmf not None):
    """As pte_trylock(), and spin until the lock is free. With IRQs off that is a deadlock: its holder may wait for this CPU
    to take an IPI."""
    take_ptl(cpu, vmf, True, "pte_lock()")


def pte_unlock(CpuHandle cpu not None, VmFault vmf not None):
    """The reverse, where a check under the lock has failed."""
    same(cpu, vmf.on)
    must_walk(vmf, "pte_unlock()")
    give_back(cpu, HELD_PTL, vmf.vmf.ptl, "pte_unlock()")
    call(cpu, do_pte_unlock, &vmf.vmf)


def handle_pte_fault(CpuHandle cpu not None, VmFault vmf not None):
    """Resolve a speculative fault from the entry on: ``VM_FAULT_`` bits, VM_FAULT_RETRY where the strategy's
    pte_map_lock() or pte_spinlock() has refused, or the fault needs mmap_sem. After walk_end(); may sleep."""
    same(cpu, vmf.on)
    must_walk(vmf, "handle_pte_fault()")
    not_busy(vmf, "handle_pte_fault()")
    if machine_of(cpu.cpu).strategy.pte_map_lock == NULL:
        raise RuntimeError("handle_pte_fault() needs a strategy with pte_map_lock() and pte_spinlock()")
    vmf.vmf.pte = NULL
    vmf.vmf.ptl = NULL
    vmf.vmf.page = NULL
    vmf.vmf.cow_page = NULL
    vmf.busy = True
    try:
        return call(cpu, do_pte_fault, &vmf.vmf, 0, 0, SLEEPS)
    finally:
        vmf.busy = False


# ---- files ----

def find_get_page(CpuHandle cpu not None, VmFault vmf not None):
    """The page of a file fault out of the page cache, with a reference; None: it is not there. Does not sleep. The VMA
    must keep its file meanwhile."""
    cdef u64 pg
    same(cpu, vmf.on)
    room(cpu)
    pg = call(cpu, do_find_get_page, &vmf.vmf)
    return page_handle(cpu, <page *>pg, 1) if pg else None


def filemap_fault(CpuHandle cpu not None, VmFault vmf not None):
    """As find_get_page(), and make the page where it is missing; may sleep. ``VM_FAULT_`` bits in place of a page: SIGBUS
    behind the end of the file, OOM."""
    cdef page_result r
    cdef PageHandle found
    cdef u64 pg
    same(cpu, vmf.on)
    room(cpu)
    if vmf.vmf.vma.vm_file == NULL:
        raise RuntimeError("filemap_fault(): no file is mapped there")
    r.vmf = &vmf.vmf
    r.major = 0
    r.err = 0
    pg = call(cpu, do_filemap_fault, &r, 0, 0, SLEEPS)
    if not pg:
        return r.err
    found = page_handle(cpu, <page *>pg, 1)
    found.major = r.major != 0
    return found
