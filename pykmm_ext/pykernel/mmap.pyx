# SPDX-License-Identifier: GPL-2.0-only
"""mm/mmap.c and mm/vma.c as a strategy in Python calls them: lookups, write sections, the end of a VMA."""
cimport cython

from pykmm_ext.kernel cimport rcu
from pykmm_ext.machine.cpu cimport Cpu, rcu_head, u64
from pykmm_ext.mm cimport fault, gup, speculative, vma as vmas
from pykmm_ext.mm.mm_types cimport machine, mm_struct, page, vm_area_struct, vm_fault_t
from pykmm_ext.pykernel.call cimport (
    HELD_MMAP_WRITE, HELD_RCU, HELD_SRCU, RUNS, SLEEPS, SPINS, CpuHandle, MachineRef, call, holds, kernel_function, same,
)
from pykmm_ext.pykernel.gup cimport gup_function, pin_pages
from pykmm_ext.pykernel.handles cimport MmHandle, VmaHandle, vma_handle

ctypedef vm_fault_t (*fault_function)(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil
ctypedef void (*mm_function)(Cpu *cpu, mm_struct *mm) noexcept nogil
ctypedef void (*vma_function)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
ctypedef void (*section_function)(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil
ctypedef void (*machine_function)(Cpu *cpu, machine *m) noexcept nogil


# ---- lookups; contexts: as the kernel function that each calls ----

# Context: as find_vma().
cdef u64 do_find_vma(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return <u64>vmas.find_vma(cpu, <mm_struct *>p, a)


# Context: as find_vma_srcu().
cdef u64 do_find_vma_srcu(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return <u64>vmas.find_vma_srcu(cpu, <mm_struct *>p, a)


# Context: as find_vma_rcu().
cdef u64 do_find_vma_rcu(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return <u64>vmas.find_vma_rcu(cpu, <mm_struct *>p, a)


# Context: as vma_has_changed().
cdef u64 do_vma_has_changed(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return vmas.vma_has_changed(cpu, <vm_area_struct *>p, <u32>a)


# Context: GIL held.
cdef VmaHandle look_up(CpuHandle cpu, MmHandle mm, kernel_function fn, unsigned long address, u32 may=RUNS):
    cdef u64 vma
    same(cpu, mm.on)
    vma = call(cpu, fn, mm.mm, address, 0, may)
    return vma_handle(cpu, <vm_area_struct *>vma) if vma else None


def find_vma(CpuHandle cpu not None, MmHandle mm not None, unsigned long address):
    """The first VMA that ends above `address`, or None. mmap_sem must be held."""
    return look_up(cpu, mm, do_find_vma, address)


def find_vma_srcu(CpuHandle cpu not None, MmHandle mm not None, unsigned long address):
    """As find_vma() without mmap_sem, inside of an SRCU section; for strategies whose tree changes bump mm_seq
    (spf_tree_write_begin)."""
    return look_up(cpu, mm, do_find_vma_srcu, address, SPINS)


def find_vma_rcu(CpuHandle cpu not None, MmHandle mm not None, unsigned long address):
    """A VMA that may be the one at `address`, or None: without mmap_sem, inside of an RCU section, and without asking
    mm_seq. It may be another one, or one that is gone: whoever uses it takes its lock and looks again."""
    return look_up(cpu, mm, do_find_vma_rcu, address)


def vma_has_changed(CpuHandle cpu not None, VmaHandle vma not None, unsigned int sequence):
    """Has the VMA left the tree, or its vm_sequence changed? With read barriers on both sides."""
    same(cpu, vma.on)
    return bool(call(cpu, do_vma_has_changed, vma.vma, sequence))


# ---- compiled functions that may stand in for methods ----

cdef enum:
    CALL_FAULT, CALL_MM, CALL_VMA, CALL_SECTION, CALL_MACHINE, CALL_GUP

# By signature: what it takes after the Cpu, and how many numbers after that.
cdef tuple WANTED = ((MmHandle, 2), (MmHandle, 0), (VmaHandle, 0), (VmaHandle, 1), (MachineRef, 0), (MmHandle, 4))

cdef struct member_call:
    void *fn
    void *p


# Contexts of these: as the member of strategy_ops.
cdef u64 do_fault(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef member_call *m = <member_call *>p
    return (<fault_function>m.fn)(cpu, <mm_struct *>m.p, a, <u32>b)


# Context: as the member of strategy_ops.
cdef u64 do_mm(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef member_call *m = <member_call *>p
    (<mm_function>m.fn)(cpu, <mm_struct *>m.p)
    return 0


# Context: as the member of strategy_ops.
cdef u64 do_vma(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef member_call *m = <member_call *>p
    (<vma_function>m.fn)(cpu, <vm_area_struct *>m.p)
    return 0


# Context: as the member of strategy_ops.
cdef u64 do_section(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef member_call *m = <member_call *>p
    (<section_function>m.fn)(cpu, <vm_area_struct *>m.p, <int>a)
    return 0


# Context: as the member of strategy_ops.
cdef u64 do_machine(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef member_call *m = <member_call *>p
    (<machine_function>m.fn)(cpu, <machine *>m.p)
    return 0


# Context: GIL held. Native: what would wait for its own caller.
cdef int may_wait(KernelFunction f, CpuHandle cpu, object x) except -1:
    cdef bint bad
    if cpu.cpu == NULL or cpu.cpu.engine != NULL:
        return 0
    if f.signature == CALL_FAULT:
        bad = holds(cpu.held, HELD_MMAP_WRITE, (<MmHandle>x).mm)
    elif f.signature == CALL_MACHINE:
        bad = holds(cpu.held, HELD_RCU, NULL) or holds(cpu.held, HELD_SRCU, NULL)
    else:
        bad = False
    if bad:
        raise RuntimeError(f"{f.name}() on CPU {cpu.cpu.id} with "
                           + ("mmap_sem held for writing" if f.signature == CALL_FAULT else "a read section open")
                           + ": it would wait for itself")
    return 0


@cython.final
cdef class KernelFunction:
    """A compiled function. Called with handles it runs; named in the class body of a strategy (``free_vma =
    spf_free_vma``) it becomes the member of the table, and no Python runs there."""

    def __cinit__(self):
        self.name = self.member = ""
        self.pointer = NULL

    def __init__(self):
        raise TypeError("these are made by pykmm")

    def __call__(self, CpuHandle cpu not None, x, *args):
        cdef member_call m
        cdef u32 signature = self.signature
        cdef tuple wanted = <tuple>WANTED[signature]
        if self.pointer == NULL:
            raise TypeError("these are made by pykmm")
        if not isinstance(x, wanted[0]) or len(args) != wanted[1]:
            if signature == CALL_GUP:
                takes = "an MmHandle, 3 numbers and a PageArray"
            else:
                takes = f"a {wanted[0].__name__}" + (
                    "" if wanted[1] == 0 else f" and {wanted[1]} number{'s' if wanted[1] > 1 else ''}")
            raise TypeError(f"{self.name}() takes a CpuHandle, {takes}")
        m.fn = self.pointer
        if signature == CALL_MM or signature == CALL_FAULT or signature == CALL_GUP:
            same(cpu, (<MmHandle>x).on)
            m.p = (<MmHandle>x).mm
        elif signature == CALL_MACHINE:
            same(cpu, (<MachineRef>x).on)
            m.p = (<MachineRef>x).m
        else:
            same(cpu, (<VmaHandle>x).on)
            m.p = (<VmaHandle>x).vma
        may_wait(self, cpu, x)
        if signature == CALL_FAULT:
            cpu.fallbacks += 1
            return call(cpu, do_fault, &m, args[0], <unsigned int>args[1], SLEEPS)
        if signature == CALL_MM:
            call(cpu, do_mm, &m, 0, 0, SPINS)
        elif signature == CALL_SECTION:
            call(cpu, do_section, &m, args[0])
        elif signature == CALL_MACHINE:
            call(cpu, do_machine, &m, 0, 0, SLEEPS)
        elif signature == CALL_GUP:
            return pin_pages(cpu, <gup_function>self.pointer, x, args[0], args[1], args[2], args[3])
        elif self.member != "free_vma":
            call(cpu, do_vma, &m, 0, 0, SPINS)
        elif (<VmaHandle>x).freed:
            raise RuntimeError(f"{self.name}(): this VMA has been freed already")
        else:
            (<VmaHandle>x).freed = 1
            call(cpu, do_vma, &m, 0, 0, SLEEPS)
        return None

    def __repr__(self):
        return f"<kernel function {self.name}()>"


cdef KernelFunction function(str name, str member, u32 signature, void *pointer):
    cdef KernelFunction f = KernelFunction.__new__(KernelFunction)
    f.name = name
    f.member = member
    f.signature = signature
    f.pointer = pointer
    return f


# Context: RCU callback: process, IRQs on.
cdef void free_vma_callback(Cpu *cpu, rcu_head *head) noexcept nogil:
    vmas.__vm_area_free(cpu, vmas.vma_of_rcu(head))


# Context: as strategy_ops.free_vma. vm_area_free() of 6.4: whoever found the VMA under rcu_read_lock() may look at it.
cdef void rcu_free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    rcu.call_rcu(cpu, &vma.vm_rcu_head, free_vma_callback)


# Context: as strategy_ops.quiesce.
cdef void rcu_quiesce(Cpu *cpu, machine *m) noexcept nogil:
    rcu.rcu_barrier(cpu)


# Context: as strategy_ops.gup_fast.
cdef long gup_fast(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                   page **pages) noexcept nogil:
    return gup.lockless_pages_from_mm(cpu, mm, start, nr_pages, gup_flags, pages, 0)


handle_fault_mmap_sem = function("handle_fault_mmap_sem", "", CALL_FAULT, <void *>fault.handle_fault_mmap_sem)
spf_vma_write_begin = function("spf_vma_write_begin", "vma_write_begin", CALL_SECTION,
                               <void *>speculative.spf_vma_write_begin)
spf_vma_write_end = function("spf_vma_write_end", "vma_write_end", CALL_VMA, <void *>speculative.spf_vma_write_end)
spf_vma_init = function("spf_vma_init", "vma_init", CALL_VMA, <void *>speculative.spf_vma_init)
spf_tree_write_begin = function("spf_tree_write_begin", "tree_write_begin", CALL_MM,
                                <void *>speculative.spf_tree_write_begin)
spf_tree_write_end = function("spf_tree_write_end", "tree_write_end", CALL_MM, <void *>speculative.spf_tree_write_end)
spf_free_vma = function("spf_free_vma", "free_vma", CALL_VMA, <void *>speculative.spf_free_vma)
spf_quiesce = function("spf_quiesce", "quiesce", CALL_MACHINE, <void *>speculative.spf_quiesce)
vm_area_free = function("vm_area_free", "free_vma", CALL_VMA, <void *>vmas.__vm_area_free)
vm_area_free_rcu = function("vm_area_free_rcu", "free_vma", CALL_VMA, <void *>rcu_free_vma)
rcu_barrier = function("rcu_barrier", "quiesce", CALL_MACHINE, <void *>rcu_quiesce)
lockless_pages_from_mm = function("lockless_pages_from_mm", "gup_fast", CALL_GUP, <void *>gup_fast)

SPF_WRITER_MASK = speculative.SPF_WRITER_MASK
