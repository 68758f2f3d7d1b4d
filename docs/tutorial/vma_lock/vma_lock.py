# SPDX-License-Identifier: GPL-2.0-only
"""A lock in every VMA: faults in private anonymous memory keep off the writers of their own VMA, and of no other."""
import pykmm
from pykmm import kernel

WRITER = 1 << 16    # vma.strategy_data: faults inside in the low half, writers in the high half


class VmaLock(pykmm.PythonStrategy):
    """A reader-writer lock per VMA, in Python."""

    name = "vma-lock"
    counters = ("not_found", "busy", "changed", "unsupported")

    # The tree changes inside of mm_seq and VMAs are freed through SRCU, so find_vma_srcu() needs no lock.
    tree_write_begin = kernel.spf_tree_write_begin
    tree_write_end = kernel.spf_tree_write_end
    free_vma = kernel.spf_free_vma
    quiesce = kernel.spf_quiesce

    def handle_fault(self, cpu, mm, address, flags):
        index = kernel.srcu_read_lock(cpu)
        result, reason = None, "not_found"
        vma = kernel.find_vma_srcu(cpu, mm, address)
        if vma is not None:
            reason = "busy"
            if kernel.atomic_add_return(cpu, vma, 1) < WRITER:
                result, reason = self.locked_fault(cpu, vma, address, flags)
            kernel.atomic_add_return(cpu, vma, -1)
        kernel.srcu_read_unlock(cpu, index)
        if result is not None:
            return result
        kernel.count(cpu, reason)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    def locked_fault(self, cpu, vma, address, flags):
        if vma.detached or not vma.vm_start <= address < vma.vm_end:
            return None, "changed"
        if vma.vm_file or not vma.anon_vma or kernel.access_error(vma.vm_flags, flags):
            return None, "unsupported"      # to make an anon_vma is to look at the neighbours
        return kernel.handle_mm_fault(cpu, vma, address, flags), ""

    def vma_write_begin(self, cpu, vma, subclass):
        kernel.atomic_add_return(cpu, vma, WRITER)
        kernel.await_equal(cpu, vma, WRITER - 1, 0)     # until the faults that are inside have left

    def vma_write_end(self, cpu, vma):
        kernel.atomic_add_return(cpu, vma, -WRITER)


@pykmm.hookimpl
def pykmm_register_strategies(registry):
    registry.add("vma-lock", VmaLock, description="a reader-writer lock per VMA, in Python")
