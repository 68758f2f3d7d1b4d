# SPDX-License-Identifier: GPL-2.0-only
"""What a strategy in Python calls: kernel functions under their kernel names, and the flags that they take.

The first argument is the :class:`CpuHandle` that the callback got, as ``Cpu *cpu`` is in C. Handles end with their
callback: ReferenceError afterwards. Everything that may wait lets other Python threads run meanwhile. On the check
engine every access to shared memory in here is a step that other CPUs may come before. ::

    from pykmm.kernel import find_vma, handle_mm_fault, mmap_read_lock, mmap_read_unlock

Releasing what the CPU does not hold raises RuntimeError, as do handles of two callbacks in one call.
"""
from __future__ import annotations

from pykmm_ext.pykernel import (
    SPF_WRITER_MASK,
    CpuHandle,
    KernelFunction,
    MachineRef,
    MmHandle,
    VmaHandle,
    access_error,
    atomic_add_return,
    await_equal,
    cmpxchg,
    count,
    down_write,
    down_write_trylock,
    find_vma,
    find_vma_srcu,
    handle_fault_mmap_sem,
    handle_mm_fault,
    mmap_read_lock,
    mmap_read_trylock,
    mmap_read_unlock,
    raw_read_seqcount,
    rcu_barrier,
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
    spf_free_vma,
    spf_quiesce,
    spf_tree_write_begin,
    spf_tree_write_end,
    spf_vma_write_begin,
    spf_vma_write_end,
    srcu_read_lock,
    srcu_read_unlock,
    synchronize_rcu,
    synchronize_srcu,
    up_write,
    vm_area_free,
    vm_area_free_rcu,
    vma_has_changed,
    write_seqlock,
    write_sequnlock,
    xchg,
)

__all__ = [
    "FAULT_FLAG_INSTRUCTION", "FAULT_FLAG_USER", "FAULT_FLAG_VMA_LOCK", "FAULT_FLAG_WRITE", "SPF_WRITER_MASK",
    "VM_EXEC", "VM_FAULT_BADACCESS", "VM_FAULT_BADMAP", "VM_FAULT_ERROR", "VM_FAULT_MAJOR", "VM_FAULT_OOM",
    "VM_FAULT_RETRY", "VM_FAULT_SIGBUS", "VM_FAULT_SIGSEGV", "VM_GROWSDOWN", "VM_READ", "VM_SHARED", "VM_WRITE",
    "CpuHandle", "KernelFunction", "MachineRef", "MmHandle", "VmaHandle", "access_error", "atomic_add_return",
    "await_equal", "cmpxchg", "count", "down_write", "down_write_trylock", "find_vma", "find_vma_srcu",
    "handle_fault_mmap_sem", "handle_mm_fault", "mmap_read_lock", "mmap_read_trylock", "mmap_read_unlock",
    "raw_read_seqcount", "rcu_barrier", "rcu_read_lock", "rcu_read_unlock", "read_seqbegin", "read_seqcount_retry",
    "read_seqretry", "smp_load_acquire", "smp_mb", "smp_rmb", "smp_store_release", "smp_wmb", "spf_free_vma",
    "spf_quiesce", "spf_tree_write_begin", "spf_tree_write_end", "spf_vma_write_begin", "spf_vma_write_end",
    "srcu_read_lock", "srcu_read_unlock", "synchronize_rcu", "synchronize_srcu", "up_write", "vm_area_free",
    "vm_area_free_rcu", "vma_has_changed", "write_seqlock", "write_sequnlock", "xchg",
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
VM_FAULT_RETRY = 0x0400     # of handle_mm_fault() with FAULT_FLAG_VMA_LOCK only
VM_FAULT_BADMAP = 0x10000
VM_FAULT_BADACCESS = 0x20000
VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV

#: Some vm_flags.
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_GROWSDOWN = 0x100
