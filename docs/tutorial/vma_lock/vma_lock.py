# SPDX-License-Identifier: GPL-2.0-only
"""A lock in every VMA: a fault keeps off those who change its own VMA, and nobody else."""
import pykmm
from pykmm import kernel

FAULT = 1           # vma.strategy_data: how many faults are inside ...
WRITER = 1 << 16    # ... and, above, mm.strategy_data as it was when a writer locked the VMA; equal = locked


class VmaLock(pykmm.PythonStrategy):
    """A reader-writer lock per VMA, in Python."""

    name = "vma-lock"
    counters = ("not_found", "locked", "changed", "unsupported")

    # The tree changes inside of mm_seq and VMAs are freed through SRCU, so find_vma_srcu() needs no lock.
    tree_write_begin = kernel.spf_tree_write_begin
    tree_write_end = kernel.spf_tree_write_end
    free_vma = kernel.spf_free_vma
    quiesce = kernel.spf_quiesce

    def handle_fault(self, cpu, mm, address, flags):
        index = kernel.srcu_read_lock(cpu)
        result, reason = kernel.VM_FAULT_RETRY, "not_found"
        vma = kernel.find_vma_srcu(cpu, mm, address)
        if vma is not None:
            reason = "locked"
            if kernel.atomic_add_return(cpu, vma, FAULT) // WRITER != kernel.smp_load_acquire(cpu, mm):
                result, reason = self.locked_fault(cpu, vma, address, flags)
            kernel.atomic_add_return(cpu, vma, -FAULT)
        kernel.srcu_read_unlock(cpu, index)
        if result != kernel.VM_FAULT_RETRY:
            return result
        kernel.count(cpu, reason)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    def locked_fault(self, cpu, vma, address, flags):
        if vma.detached or not vma.vm_start <= address < vma.vm_end or kernel.access_error(vma.vm_flags, flags):
            return kernel.VM_FAULT_RETRY, "changed"
        return kernel.handle_mm_fault(cpu, vma, address, flags | kernel.FAULT_FLAG_VMA_LOCK), "unsupported"

    def vma_start_write(self, cpu, vma):
        now, word = vma.vm_mm.strategy_data, vma.strategy_data
        if word // WRITER != now:
            kernel.atomic_add_return(cpu, vma, (now - word // WRITER) * WRITER)
            kernel.await_equal(cpu, vma, WRITER - 1, 0)     # until the faults that are inside have left

    def mmap_write_lock(self, cpu, mm, start, end):
        kernel.down_write(cpu, mm)

    def mmap_write_unlock(self, cpu, mm):
        kernel.smp_store_release(cpu, mm, mm.strategy_data + 1)     # unlocks every VMA
        kernel.up_write(cpu, mm)


@pykmm.hookimpl
def pykmm_register_strategies(registry):
    registry.add("vma-lock", VmaLock, description="a reader-writer lock per VMA, in Python")
