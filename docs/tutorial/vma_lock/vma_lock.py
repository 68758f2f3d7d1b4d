# SPDX-License-Identifier: GPL-2.0-only
"""A lock in every VMA: faults in private anonymous memory keep off the writers of their own VMA, and of no other."""
import pykmm
from pykmm.kernel import (
    access_error,
    atomic_add_return,
    await_equal,
    count,
    find_vma_srcu,
    handle_fault_mmap_sem,
    handle_mm_fault,
    spf_free_vma,
    spf_quiesce,
    spf_tree_write_begin,
    spf_tree_write_end,
    srcu_read_lock,
    srcu_read_unlock,
)

WRITER = 1 << 16    # vma.strategy_data: faults inside in the low half, writers in the high half


class VmaLock(pykmm.PythonStrategy):
    """A reader-writer lock per VMA, in Python."""

    name = "vma-lock"
    counters = ("not_found", "busy", "changed", "unsupported")

    # The tree changes inside of mm_seq, VMAs are freed through SRCU: so find_vma_srcu() needs no lock.
    tree_write_begin = spf_tree_write_begin
    tree_write_end = spf_tree_write_end
    free_vma = spf_free_vma
    quiesce = spf_quiesce

    def handle_fault(self, cpu, mm, address, flags):
        index = srcu_read_lock(cpu)
        result, reason = None, "not_found"
        vma = find_vma_srcu(cpu, mm, address)
        if vma is not None:
            reason = "busy"
            if atomic_add_return(cpu, vma, 1) < WRITER:
                result, reason = self.locked_fault(cpu, vma, address, flags)
            atomic_add_return(cpu, vma, -1)
        srcu_read_unlock(cpu, index)
        if result is not None:
            return result
        count(cpu, reason)
        return handle_fault_mmap_sem(cpu, mm, address, flags)

    def locked_fault(self, cpu, vma, address, flags):
        if vma.detached or not vma.vm_start <= address < vma.vm_end or access_error(vma.vm_flags, flags):
            return None, "changed"
        if vma.vm_file or not vma.anon_vma:     # making an anon_vma looks at the neighbours
            return None, "unsupported"
        return handle_mm_fault(cpu, vma, address, flags), ""

    def vma_write_begin(self, cpu, vma, subclass):
        atomic_add_return(cpu, vma, WRITER)
        await_equal(cpu, vma, WRITER - 1, 0)    # faults that are inside

    def vma_write_end(self, cpu, vma):
        atomic_add_return(cpu, vma, -WRITER)


@pykmm.hookimpl
def pykmm_register_strategies(registry):
    registry.add("vma-lock", VmaLock, description="a reader-writer lock per VMA, in Python")
