# SPDX-License-Identifier: GPL-2.0-only
# What Python code of a strategy gets: handles of kernel objects, and kernel functions. Not part of the plugin C API.
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport machine, mm_struct, vm_area_struct

# What one simulated CPU has taken through these functions and not given back. Context of everything: GIL.
cdef struct held_lock:
    u32 kind
    void *lock
    long index              # SRCU
cdef enum:
    MAX_HELD = 32
cdef struct held_locks:
    u32 n
    held_lock locks[MAX_HELD]

cdef class CpuHandle:
    cdef Cpu *cpu           # NULL = the callback that it was made for has returned
    cdef held_locks *held   # of the Cpu: outlives the handle
    cdef dict counters      # name: index into Cpu.strategy_count
    cdef u32 fallbacks      # calls of handle_fault_mmap_sem()

cdef class MmHandle:
    cdef CpuHandle on
    cdef mm_struct *mm

cdef class VmaHandle:
    cdef CpuHandle on
    cdef vm_area_struct *vma
    cdef u32 freed          # it was handed to a function that frees it

cdef class MachineRef:
    cdef CpuHandle on
    cdef machine *m

# A compiled function, to be called, or to stand in the class body in place of a method.
cdef class KernelFunction:
    cdef void *pointer
    cdef u32 signature
    cdef readonly str name
    cdef readonly str member    # of strategy_ops that it can be, or ""

# Context: GIL held. The handle of a callback on `cpu`; ends with handle.cpu = NULL.
cdef CpuHandle cpu_handle(Cpu *cpu, held_locks *held, dict counters)
cdef MmHandle mm_handle(CpuHandle on, mm_struct *mm)
cdef VmaHandle vma_handle(CpuHandle on, vm_area_struct *vma)
cdef MachineRef machine_ref(CpuHandle on, machine *m)
# Context: GIL held; `held` is of a Cpu that is driven by the caller. What was taken beyond the first `n`, in words; NULL
# objects are never among them.
cdef str held_words(held_locks *held, u32 n)
# Context: the same, native. Gives it back, newest first.
cdef void release_held(Cpu *cpu, held_locks *held, u32 n) noexcept nogil
# Context: any. Is mmap_sem of `mm` among it for writing?
cdef bint holds_mmap_write(held_locks *held, mm_struct *mm) noexcept nogil
# Context: as strategy_ops.mmap_write_lock, and the reverse; the lock is booked in `held`.
cdef void take_mmap_write(Cpu *cpu, held_locks *held, mm_struct *mm) noexcept nogil
