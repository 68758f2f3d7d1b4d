# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (measuring loops: they must cost as little as what they drive)
"""mm/vma.c's self-test: timing loops for lookup and mapping, and a look at what Python cannot see otherwise.

stands in for tools/testing/vma. Every function drives one simulated Cpu from the calling OS thread, GIL released.
"""
from libc.stdlib cimport free, malloc

from pykmm_ext.handle cimport cpu_disown, cpu_own, machine_get, machine_put
from pykmm_ext.kernel.random32 cimport xorshift
from pykmm_ext.kernel.srcu cimport srcu_read_lock, srcu_read_unlock
from pykmm_ext.kernel.timekeeping cimport now_ns
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport anon_vma_chain, vm_area_struct
from pykmm_ext.mm.mmap cimport ksys_mmap, mmap_read_lock, mmap_read_unlock, vm_munmap
from pykmm_ext.mm.vma cimport __find_vma, find_vma, find_vma_srcu
from pykmm_ext.mm.vma_exec cimport install_mapping
from pykmm_ext.mm_binding cimport MmStruct


def install(MmStruct mm not None, unsigned long start, unsigned long end, unsigned long vm_flags, str name=None) -> int:
    """install_mapping() without a file: 0 or -errno."""
    cdef int ret
    cdef bytes raw = name.encode() if name is not None else b""
    cdef const char *label = NULL
    cdef Cpu *cpu
    if name is not None:
        label = raw
    machine_get(mm.machine)
    cpu = mm.machine.m.cpus[0]
    with nogil:
        cpu_own(cpu)
        ret = install_mapping(cpu, mm.mm, start, end, vm_flags, NULL, 0, label)
        cpu_disown(cpu)
    machine_put(mm.machine)
    return ret


def set_max_map_count(MmStruct mm not None, unsigned long n) -> None:
    """vm.max_map_count of the mm's machine."""
    mm.mm.machine.vm_max_map_count = n


def counters(MmStruct mm not None) -> dict:
    """The mm's own books, in pages."""
    return {"map_count": mm.mm.map_count, "total_vm": mm.mm.total_vm, "locked_vm": mm.mm.locked_vm,
            "data_vm": mm.mm.data_vm, "exec_vm": mm.mm.exec_vm, "stack_vm": mm.mm.stack_vm}


def anon_vmas(MmStruct mm not None) -> list:
    """Per VMA in order: (start, identity of its anon_vma or 0, length of its chain, degree of the anon_vma)."""
    cdef vm_area_struct *vma = mm.mm.mmap
    cdef anon_vma_chain *avc
    cdef u32 n
    result = []
    while vma != NULL:
        n = 0
        avc = vma.anon_vma_chain
        while avc != NULL:
            n += 1
            avc = avc.same_vma_next
        result.append((vma.vm_start, <size_t>vma.anon_vma, n, vma.anon_vma.degree if vma.anon_vma != NULL else 0))
        vma = vma.vm_next
    return result


def lookup_agrees(MmStruct mm not None, unsigned long low, unsigned long high, unsigned long step) -> bool:
    """find_vma, find_vma_srcu and a walk along the list give the same answer for every `step`-th address."""
    cdef unsigned long addr = low
    cdef vm_area_struct *vma
    cdef Cpu *cpu
    cdef bint same = True
    cdef int idx
    machine_get(mm.machine)
    cpu = mm.machine.m.cpus[0]
    with nogil:
        cpu_own(cpu)
        mmap_read_lock(cpu, mm.mm)
        while addr < high and same:
            vma = mm.mm.mmap
            while vma != NULL and vma.vm_end <= addr:
                vma = vma.vm_next
            idx = srcu_read_lock(cpu, &mm.mm.machine.vma_srcu)
            same = find_vma_srcu(cpu, mm.mm, addr) == vma
            srcu_read_unlock(cpu, &mm.mm.machine.vma_srcu, idx)
            same = same and find_vma(cpu, mm.mm, addr) == vma and __find_vma(mm.mm, addr) == vma
            addr += step
        mmap_read_unlock(cpu, mm.mm)
        cpu_disown(cpu)
    machine_put(mm.machine)
    return same


def random_keys(unsigned long base, unsigned long n, unsigned long stride, unsigned long count) -> bytes:
    """`count` addresses, each at the start of one of `n` places `stride` bytes apart, as native unsigned longs."""
    cdef u64 state = 0x9e3779b97f4a7c15
    cdef unsigned long i
    cdef unsigned long *keys
    if count > 1 << 28:
        raise ValueError("too many keys")
    keys = <unsigned long *>malloc(count * sizeof(unsigned long))
    if keys == NULL:
        raise MemoryError()
    for i in range(count):
        keys[i] = base + (xorshift(&state) >> 11) % n * stride
    try:
        return (<char *>keys)[:count * sizeof(unsigned long)]
    finally:
        free(keys)


def time_find_vma(MmStruct mm not None, bytes keys not None, str how="find_vma") -> float:
    """Nanoseconds per lookup of the keys (random_keys): "find_vma", "tree" (no cache) or "srcu". ValueError on a miss."""
    cdef unsigned long *key = <unsigned long *><char *>keys
    cdef unsigned long n = len(keys) // sizeof(unsigned long), i, missed = 0
    cdef int which = ("find_vma", "tree", "srcu").index(how), idx
    cdef vm_area_struct *vma
    cdef Cpu *cpu
    cdef u64 start = 0
    machine_get(mm.machine)
    cpu = mm.machine.m.cpus[0]
    with nogil:
        cpu_own(cpu)
        mmap_read_lock(cpu, mm.mm)
        idx = srcu_read_lock(cpu, &mm.mm.machine.vma_srcu)
        start = now_ns()
        for i in range(n):
            if which == 0:
                vma = find_vma(cpu, mm.mm, key[i])
            elif which == 1:
                vma = __find_vma(mm.mm, key[i])
            else:
                vma = find_vma_srcu(cpu, mm.mm, key[i])
            missed += vma == NULL or vma.vm_start != key[i]
        start = now_ns() - start
        srcu_read_unlock(cpu, &mm.mm.machine.vma_srcu, idx)
        mmap_read_unlock(cpu, mm.mm)
        cpu_disown(cpu)
    machine_put(mm.machine)
    if missed:
        raise ValueError(f"{missed} of {n} keys were not found")
    return <double>start / n


def time_mmap_munmap(MmStruct mm not None, unsigned long length, unsigned long n) -> float:
    """Nanoseconds per pair of mmap(NULL, length, RW, private anonymous) and munmap, nothing touched."""
    cdef unsigned long i
    cdef long a = 0, r = 0
    cdef u64 start = 0
    cdef Cpu *cpu
    machine_get(mm.machine)
    cpu = mm.machine.m.cpus[0]
    with nogil:
        cpu_own(cpu)
        start = now_ns()
        for i in range(n):  # no-cython-lint
            a = ksys_mmap(cpu, mm.mm, 0, length, 3, 0x22, NULL, 0)
            r = vm_munmap(cpu, mm.mm, <unsigned long>a, length)
            if a < 0 or r < 0:
                break
        start = now_ns() - start
        cpu_disown(cpu)
    machine_put(mm.machine)
    if a < 0 or r < 0:
        raise OSError(-(a if a < 0 else r), "mmap or munmap failed")
    return <double>start / n
