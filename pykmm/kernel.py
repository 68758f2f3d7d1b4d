# SPDX-License-Identifier: GPL-2.0-only
"""What a strategy in Python calls: kernel functions under their kernel names, and the flags that they take.

The first argument is the :class:`CpuHandle` that the callback got, as ``Cpu *cpu`` is in C. Handles end with their
callback: ReferenceError afterwards. Everything that may wait lets other Python threads run meanwhile. On the check
engine every access to shared memory in here is a step that other CPUs may come before. ::

    from pykmm.kernel import find_vma, handle_mm_fault, mmap_read_lock, mmap_read_unlock

RuntimeError: releasing what the CPU does not hold, handles of two callbacks in one call, a thread that does not drive
the CPU, and, on the native engine, a function that would wait for its own caller or sleep with IRQs off. A method that
the function calls in its turn (handle_pte_fault() calls pte_map_lock()) raises through it.
"""
from __future__ import annotations

from pykmm_ext.pykernel.call import (
    CpuHandle,
    MachineRef,
    count,
)
from pykmm_ext.pykernel.gup import (
    READ_ONCE,
    EntryHandle,
    PageArray,
    begin_lockless_pgtbl_walk,
    end_lockless_pgtbl_walk,
    gup_must_unshare,
    mm_find_pmd,
    pte_access_permitted,
    pte_offset,
    pte_special,
    try_grab_page,
    unpin_user_pages,
)
from pykmm_ext.pykernel.handles import (
    FieldHandle,
    MmHandle,
    VmaHandle,
)
from pykmm_ext.pykernel.locks import (
    atomic_add_return,
    await_equal,
    cmpxchg,
    down_write,
    down_write_trylock,
    downgrade_write,
    mmap_read_lock,
    mmap_read_trylock,
    mmap_read_unlock,
    raw_read_seqcount,
    rcu_read_lock,
    rcu_read_unlock,
    read_seqbegin,
    read_seqcount_retry,
    read_seqretry,
    smp_load_acquire,
    smp_mb,
    smp_rmb,
    smp_store_release,
    smp_wmb,
    srcu_read_lock,
    srcu_read_unlock,
    synchronize_rcu,
    synchronize_srcu,
    up_write,
    write_seqlock,
    write_sequnlock,
    xchg,
)
from pykmm_ext.pykernel.memory import (
    PageHandle,
    VmFault,
    access_error,
    filemap_fault,
    find_get_page,
    handle_mm_fault,
    handle_pte_fault,
    pmd_same,
    pte_lock,
    pte_trylock,
    pte_unlock,
    put_page,
    walk_begin,
    walk_end,
    walk_to_pte,
)
from pykmm_ext.pykernel.mmap import (
    SPF_WRITER_MASK,
    KernelFunction,
    find_vma,
    find_vma_rcu,
    find_vma_srcu,
    handle_fault_mmap_sem,
    lockless_pages_from_mm,
    rcu_barrier,
    spf_free_vma,
    spf_quiesce,
    spf_tree_write_begin,
    spf_tree_write_end,
    spf_vma_init,
    spf_vma_write_begin,
    spf_vma_write_end,
    vm_area_free,
    vm_area_free_rcu,
    vma_has_changed,
)

__all__ = [
    "FAULT_FLAG_INSTRUCTION", "FAULT_FLAG_USER", "FAULT_FLAG_VMA_LOCK", "FAULT_FLAG_WRITE", "FOLL_GET", "FOLL_PIN",
    "FOLL_WRITE", "READ_ONCE", "SPF_WRITER_MASK", "VMA_ATTACHED", "VMA_LOCK_OFFSET", "VM_EXEC", "VM_FAULT_BADACCESS",
    "VM_FAULT_BADMAP", "VM_FAULT_ERROR", "VM_FAULT_MAJOR", "VM_FAULT_OOM", "VM_FAULT_RETRY", "VM_FAULT_SIGBUS",
    "VM_FAULT_SIGSEGV", "VM_GROWSDOWN", "VM_HUGETLB", "VM_PFNMAP", "VM_READ", "VM_SHARED", "VM_WRITE", "CpuHandle",
    "EntryHandle", "FieldHandle", "KernelFunction", "MachineRef", "MmHandle", "PageArray", "PageHandle", "VmFault",
    "VmaHandle", "access_error", "atomic_add_return", "await_equal", "begin_lockless_pgtbl_walk", "cmpxchg", "count",
    "down_write", "down_write_trylock", "downgrade_write", "end_lockless_pgtbl_walk", "filemap_fault",
    "find_get_page", "find_vma", "find_vma_rcu", "find_vma_srcu", "gup_must_unshare", "handle_fault_mmap_sem",
    "handle_mm_fault", "handle_pte_fault", "lockless_pages_from_mm", "mm_find_pmd", "mmap_read_lock",
    "mmap_read_trylock", "mmap_read_unlock", "pmd_same", "pte_access_permitted", "pte_lock", "pte_offset",
    "pte_special", "pte_trylock", "pte_unlock", "put_page", "raw_read_seqcount", "rcu_barrier", "rcu_read_lock",
    "rcu_read_unlock", "read_seqbegin", "read_seqcount_retry", "read_seqretry", "smp_load_acquire", "smp_mb",
    "smp_rmb", "smp_store_release", "smp_wmb", "spf_free_vma", "spf_quiesce", "spf_tree_write_begin",
    "spf_tree_write_end", "spf_vma_init", "spf_vma_write_begin", "spf_vma_write_end", "srcu_read_lock",
    "srcu_read_unlock", "synchronize_rcu", "synchronize_srcu", "try_grab_page", "unpin_user_pages", "up_write",
    "vm_area_free", "vm_area_free_rcu", "vma_has_changed", "walk_begin", "walk_end", "walk_to_pte", "write_seqlock",
    "write_sequnlock", "xchg",
]

#: What the access was, in ``flags`` of handle_fault(): include/linux/mm.h.
FAULT_FLAG_WRITE = 0x01
FAULT_FLAG_USER = 0x40
FAULT_FLAG_INSTRUCTION = 0x100
#: For handle_mm_fault() without mmap_sem, under a lock of the VMA: VM_FAULT_RETRY where it takes mmap_sem.
FAULT_FLAG_VMA_LOCK = 0x1000

#: What handle_fault() returns: 0 or VM_FAULT_MAJOR, or one of the errors; SIGSEGV with BADMAP or BADACCESS.
VM_FAULT_OOM = 0x0001
VM_FAULT_SIGBUS = 0x0002
VM_FAULT_MAJOR = 0x0004
VM_FAULT_SIGSEGV = 0x0040
VM_FAULT_RETRY = 0x0400     # of handle_mm_fault() with FAULT_FLAG_VMA_LOCK, of handle_pte_fault(), of filemap_fault()
VM_FAULT_BADMAP = 0x10000
VM_FAULT_BADACCESS = 0x20000
VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV

#: What gup_fast() is asked for, in ``gup_flags``.
FOLL_WRITE = 0x01
FOLL_GET = 0x04             # an ordinary reference
FOLL_PIN = 0x40000          # somebody will read or write the contents

#: Bits of vm_refcnt, for strategies whose VMAs are type-stable: in a tree; a writer is inside or waits.
VMA_ATTACHED = 0x80000000
VMA_LOCK_OFFSET = 0x40000000

#: Some vm_flags.
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_GROWSDOWN = 0x100
VM_PFNMAP = 0x400
VM_HUGETLB = 0x400000
