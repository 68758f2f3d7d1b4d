# SPDX-License-Identifier: GPL-2.0-only
"""mm/vma_lock's self-test: what a VMA's lock is at, and a reader that stays inside. stands in for lib/test_*.c."""
from pykmm_ext.handle cimport machine_get, machine_put
from pykmm_ext.kernel.rcu cimport rcu_read_lock, rcu_read_unlock
from pykmm_ext.kernel.rwsem cimport down_read_trylock, up_read
from pykmm_ext.kernel.atomic cimport atomic_add_return_32, kmm_wake_32
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport VMA_LOCK_OFFSET, vm_area_struct
from pykmm_ext.mm.mmap cimport mmap_read_lock, mmap_read_unlock
from pykmm_ext.mm.vma cimport __find_vma
from pykmm_ext.mm.vma_lock cimport vma_end_read_uncounted, vma_read_uncounted
from pykmm_ext.mm_binding cimport MmStruct


cdef vm_area_struct *vma_at(MmStruct mm, unsigned long address):
    """Context: nobody unmaps it."""
    cdef Cpu *c = mm.machine.m.cpus[0]
    cdef vm_area_struct *vma
    with nogil:
        mmap_read_lock(c, mm.mm)
        vma = __find_vma(mm.mm, address)
        mmap_read_unlock(c, mm.mm)
    return vma


def lock_state(MmStruct mm not None, unsigned long address):
    """(mm_lock_seq, vm_lock_seq, vm_refcnt, detached) of the VMA at `address`. Nobody unmaps it meanwhile."""
    cdef vm_area_struct *vma = vma_at(mm, address)
    return mm.mm.mm_lock_seq, vma.vm_lock_seq, vma.vm_refcnt, vma.detached


def is_biased(MmStruct mm not None, unsigned long address):
    """vm_read_biased of the VMA at `address`: may faults hold it uncounted? Nobody unmaps it meanwhile."""
    return bool(vma_at(mm, address).vm_read_biased)


cdef class Reader:
    """Cpu 0 as a fault that stays inside the VMA at `address` until :meth:`leave`: a call in progress."""
    cdef MmStruct mm
    cdef vm_area_struct *vma
    cdef bint refcount
    cdef bint uncounted

    def __cinit__(self, MmStruct mm not None, unsigned long address, bint refcount, bint uncounted=False):
        cdef Cpu *c = mm.machine.m.cpus[0]
        self.mm = mm
        self.refcount = refcount
        self.vma = vma_at(mm, address)
        self.uncounted = uncounted
        if uncounted:
            if not vma_read_uncounted(c, self.vma, 0):
                raise RuntimeError("readers of the VMA have to be counted")
        elif refcount:
            atomic_add_return_32(c, &self.vma.vm_refcnt, 1)
        elif not down_read_trylock(c, &self.vma.vm_lock):
            raise RuntimeError("the VMA is being write-locked")
        machine_get(mm.machine)

    def waited_for(self):
        """Is a writer at the VMA?"""
        if self.uncounted:
            return not self.vma.vm_read_biased
        return self.vma.vm_refcnt & VMA_LOCK_OFFSET != 0 if self.refcount else self.vma.vm_lock.count & 2 != 0

    def leave(self):
        """As vma_end_read()."""
        cdef Cpu *c = self.mm.machine.m.cpus[0]
        with nogil:
            rcu_read_lock(c)
            if self.uncounted:
                vma_end_read_uncounted(c, self.vma)
            elif self.refcount:
                atomic_add_return_32(c, &self.vma.vm_refcnt, <unsigned int>-1)
                atomic_add_return_32(c, &self.mm.mm.vma_writer_wait, 1)
                kmm_wake_32(c, &self.mm.mm.vma_writer_wait, 1)
            else:
                up_read(c, &self.vma.vm_lock)
            rcu_read_unlock(c)
        machine_put(self.mm.machine)
