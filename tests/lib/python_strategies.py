# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python that use every member of strategy_ops; and each with one point of it left out."""
from __future__ import annotations

from typing import Any, ClassVar

import pykmm
from pykmm import kernel
from pykmm.kernel import (
    FAULT_FLAG_VMA_LOCK,
    FOLL_PIN,
    FOLL_WRITE,
    SPF_WRITER_MASK,
    VM_FAULT_BADACCESS,
    VM_FAULT_ERROR,
    VM_FAULT_RETRY,
    VM_FAULT_SIGSEGV,
    VM_HUGETLB,
    VM_PFNMAP,
    VMA_ATTACHED,
    VMA_LOCK_OFFSET,
)


class PythonSpf(pykmm.PythonStrategy):
    """Speculative faults, as plugins/strategies/_spf has them in C."""

    name = "python-spf"
    counters = ("vma_not_found", "vma_changed", "vma_busy", "bounds", "no_page_table", "no_anon_vma", "ptl_contended",
                "pte_changed_vma", "page_not_cached", "fault_error")
    recheck: ClassVar[bool] = True      # False: nobody looks again under the PTL

    vma_write_begin = kernel.spf_vma_write_begin
    vma_write_end = kernel.spf_vma_write_end
    tree_write_begin = kernel.spf_tree_write_begin
    tree_write_end = kernel.spf_tree_write_end
    free_vma = kernel.spf_free_vma
    vma_init = kernel.spf_vma_init
    quiesce = kernel.spf_quiesce

    def pte_map_lock(self, cpu: Any, vmf: Any) -> bool:
        kernel.walk_begin(cpu, vmf.mm)
        vmf.private = self.lock(cpu, vmf)
        kernel.walk_end(cpu, vmf.mm)
        return not vmf.private

    pte_spinlock = pte_map_lock

    def lock(self, cpu: Any, vmf: Any) -> str:
        if not self.recheck:
            return "" if kernel.pte_trylock(cpu, vmf) else "ptl_contended"
        if kernel.vma_has_changed(cpu, vmf.vma, vmf.sequence):
            return "pte_changed_vma"
        if not kernel.pmd_same(cpu, vmf):
            return "no_page_table"
        if not kernel.pte_trylock(cpu, vmf):
            return "ptl_contended"
        if not kernel.vma_has_changed(cpu, vmf.vma, vmf.sequence) and kernel.pmd_same(cpu, vmf):
            return ""
        kernel.pte_unlock(cpu, vmf)
        return "pte_changed_vma"

    def filemap_fault(self, cpu: Any, vmf: Any) -> Any:
        """Only what is in the page cache already."""
        page = kernel.find_get_page(cpu, vmf)
        if page is None:
            vmf.private = "page_not_cached"
            return VM_FAULT_RETRY
        return page

    def speculative_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> tuple[int, str]:
        vma = kernel.find_vma_srcu(cpu, mm, address)
        if vma is None:
            return VM_FAULT_RETRY, "vma_not_found"
        sequence = kernel.raw_read_seqcount(cpu, vma)
        if vma.detached:
            return VM_FAULT_RETRY, "vma_changed"
        if sequence & SPF_WRITER_MASK:
            return VM_FAULT_RETRY, "vma_busy"
        vmf = kernel.VmFault(cpu, vma, address, flags, sequence)
        if kernel.read_seqcount_retry(cpu, vma, sequence):
            return VM_FAULT_RETRY, "vma_changed"
        if (not vmf.vma_start <= address < vmf.vma_end or vmf.vma_flags & (VM_HUGETLB | VM_PFNMAP)
                or kernel.access_error(vmf.vma_flags, flags)):
            return VM_FAULT_RETRY, "bounds"
        kernel.walk_begin(cpu, mm)
        changed = kernel.vma_has_changed(cpu, vma, sequence)
        found = not changed and kernel.walk_to_pte(cpu, vmf)
        kernel.walk_end(cpu, mm)
        if not found:
            return VM_FAULT_RETRY, "vma_changed" if changed else "no_page_table"
        vmf.private = "no_anon_vma"
        result = kernel.handle_pte_fault(cpu, vmf)
        if result & VM_FAULT_ERROR:
            return VM_FAULT_RETRY, "fault_error"    # mmap_sem finds out whether it is one
        return result, vmf.private or "fault_error"

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        index = kernel.srcu_read_lock(cpu)
        result, reason = self.speculative_fault(cpu, mm, address, flags)
        kernel.srcu_read_unlock(cpu, index)
        if not result & VM_FAULT_RETRY:
            return result
        kernel.count(cpu, reason)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)


class PythonSpfUnchecked(PythonSpf):
    """What was true before the PTL was taken is relied on under it."""

    name = "python-spf-unchecked"
    recheck = False


class PythonGup(pykmm.PythonStrategy):
    """Pins by a walk of page tables without a lock, as mm/gup has it in C; faults under mmap_sem."""

    name = "python-gup"
    counters = ("gup_attempts", "gup_fast", "gup_slow")
    walk: ClassVar[bool] = True         # False: nothing keeps page tables from being freed meanwhile
    fork: ClassVar[bool] = True         # False: a fork that has not seen the pins goes unnoticed

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    def gup_fast(self, cpu: Any, mm: Any, start: int, nr_pages: int, gup_flags: int, pages: Any) -> int:
        kernel.count(cpu, "gup_attempts")
        sequence = kernel.raw_read_seqcount(cpu, mm)    # write_protect_seq: fork
        pin = gup_flags & FOLL_PIN and self.fork
        if not (pin and sequence & 1):
            if self.walk:
                kernel.begin_lockless_pgtbl_walk(cpu, mm)
            for n in range(nr_pages):
                if not self.one(cpu, mm, start + n * mm.page_size, gup_flags, pages):
                    break
            if self.walk:
                kernel.end_lockless_pgtbl_walk(cpu, mm)
            if pin and len(pages) and kernel.read_seqcount_retry(cpu, mm, sequence):
                kernel.unpin_user_pages(cpu, pages)
        kernel.count(cpu, "gup_fast" if len(pages) == nr_pages else "gup_slow")
        return len(pages)

    def one(self, cpu: Any, mm: Any, address: int, gup_flags: int, pages: Any) -> bool:
        pmd = kernel.mm_find_pmd(cpu, mm, address)
        if pmd is None:
            return False
        pmdval = kernel.READ_ONCE(cpu, pmd)
        ptep = kernel.pte_offset(cpu, pmd, pmdval)
        if ptep is None:
            return False
        pte = kernel.READ_ONCE(cpu, ptep)
        if not kernel.pte_access_permitted(cpu, pte, bool(gup_flags & FOLL_WRITE)) or kernel.pte_special(cpu, pte):
            return False
        page = kernel.try_grab_page(cpu, ptep, pte, gup_flags)
        if page is None:
            return False
        if kernel.READ_ONCE(cpu, pmd) != pmdval or kernel.READ_ONCE(cpu, ptep) != pte:
            kernel.put_page(cpu, page)
            return False
        if kernel.gup_must_unshare(cpu, page, pte, gup_flags):
            kernel.put_page(cpu, page)
            return False
        pages.append(page)
        return True


class PythonGupOpen(PythonGup):
    """The page tables that it walks may go meanwhile."""

    name = "python-gup-open"
    walk = False


class PythonGupFork(PythonGup):
    """A fork may have missed its pins."""

    name = "python-gup-fork"
    fork = False


class PythonRefcount(pykmm.PythonStrategy):
    """A reference count per VMA, on VMAs that are recycled at once: as plugins/strategies/_per_vma_lock_refcount, but
    that writers wait on the count itself."""

    name = "python-refcount"
    counters = ("not_found", "write_locked", "detached", "unsupported")
    vma_typesafe = True
    munmap_downgrade = True
    recheck: ClassVar[bool] = True      # False: the VMA is not looked at again once it cannot change

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        vma, reason = self.lock_vma_under_rcu(cpu, mm, address)
        if vma is not None:
            if kernel.access_error(vma.vm_flags, flags):
                result = VM_FAULT_SIGSEGV | VM_FAULT_BADACCESS
            else:
                result = kernel.handle_mm_fault(cpu, vma, address, flags | FAULT_FLAG_VMA_LOCK)
            kernel.atomic_add_return(cpu, vma.at("vm_refcnt"), -1)
            if not result & VM_FAULT_RETRY:
                return result
            reason = "unsupported"
        kernel.count(cpu, reason)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    def lock_vma_under_rcu(self, cpu: Any, mm: Any, address: int) -> tuple[Any, str]:
        kernel.rcu_read_lock(cpu)
        vma = kernel.find_vma_rcu(cpu, mm, address)
        reason = "not_found"
        if vma is not None and (self.recheck or vma.vm_start <= address < vma.vm_end):
            reason = self.vma_start_read(cpu, mm, vma)
            if not reason and self.recheck and not (vma.vm_mm == mm and vma.vm_start <= address < vma.vm_end):
                kernel.atomic_add_return(cpu, vma.at("vm_refcnt"), -1)
                reason = "not_found"
        kernel.rcu_read_unlock(cpu)
        return (None, reason) if reason else (vma, "")

    def vma_start_read(self, cpu: Any, mm: Any, vma: Any) -> str:
        count = vma.at("vm_refcnt")
        old = kernel.smp_load_acquire(cpu, count)
        while True:
            if not old & VMA_ATTACHED:
                return "detached"
            if old & VMA_LOCK_OFFSET:
                return "write_locked"
            seen = kernel.cmpxchg(cpu, count, old, old + 1)
            if seen == old:
                break
            old = seen
        if vma.vm_lock_seq == kernel.smp_load_acquire(cpu, mm.at("mm_lock_seq")):
            kernel.atomic_add_return(cpu, count, -1)
            return "write_locked"
        return ""

    def vma_init(self, cpu: Any, vma: Any) -> None:
        vma.vm_lock_seq = (1 << 64) - 1

    def vma_start_write(self, cpu: Any, vma: Any) -> None:
        now = vma.vm_mm.mm_lock_seq
        if vma.vm_lock_seq == now:
            return
        count = vma.at("vm_refcnt")
        if not count.value & VMA_ATTACHED:
            vma.vm_lock_seq = now       # nobody can get at it
            return
        kernel.atomic_add_return(cpu, count, VMA_LOCK_OFFSET)
        kernel.await_equal(cpu, count, 0xffffffff, VMA_ATTACHED | VMA_LOCK_OFFSET)
        vma.vm_lock_seq = now
        kernel.atomic_add_return(cpu, count, -VMA_LOCK_OFFSET)

    def vma_mark_attached(self, cpu: Any, vma: Any) -> None:
        kernel.smp_store_release(cpu, vma.at("vm_refcnt"), VMA_ATTACHED)

    def vma_mark_detached(self, cpu: Any, vma: Any) -> None:
        count = vma.at("vm_refcnt")
        if kernel.atomic_add_return(cpu, count, -VMA_ATTACHED):
            kernel.await_equal(cpu, count, 0xffffffff, 0)   # lookups that find out that it is write-locked

    def mmap_write_lock(self, cpu: Any, mm: Any, start: int, end: int) -> None:
        kernel.down_write(cpu, mm)

    def mmap_write_unlock(self, cpu: Any, mm: Any) -> None:
        kernel.smp_store_release(cpu, mm.at("mm_lock_seq"), mm.mm_lock_seq + 1)
        kernel.up_write(cpu, mm)

    def mmap_write_downgrade(self, cpu: Any, mm: Any) -> None:
        kernel.smp_store_release(cpu, mm.at("mm_lock_seq"), mm.mm_lock_seq + 1)
        kernel.downgrade_write(cpu, mm)


class PythonRefcountUnchecked(PythonRefcount):
    """Bounds and owner of the VMA are those of before the reference was taken."""

    name = "python-refcount-unchecked"
    recheck = False


RIGHT = (PythonSpf, PythonGup, PythonRefcount)
