# SPDX-License-Identifier: GPL-2.0-only
# mm/mempolicy.c: memory policies. A struct mempolicy never changes once a VMA has it, so VMAs share it by reference.
from pykmm_ext.kernel.atomic cimport READ_ONCE_32, atomic_dec_and_test_32, atomic_inc_32
from pykmm_ext.kernel.slab cimport kmem_cache_free
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport KMEM_POLICY, MAX_NUMNODES_LONGS, machine_of, mempolicy, mm_struct

cdef enum:
    MPOL_DEFAULT = 0
    MPOL_PREFERRED = 1
    MPOL_BIND = 2
    MPOL_INTERLEAVE = 3
    MPOL_LOCAL = 4
    MPOL_PREFERRED_MANY = 5
    MPOL_WEIGHTED_INTERLEAVE = 6
    MPOL_MAX = 7
    MPOL_F_STATIC_NODES = 0x8000
    MPOL_F_RELATIVE_NODES = 0x4000
    MPOL_F_NUMA_BALANCING = 0x2000
    MPOL_MODE_FLAGS = 0xe000
    MPOL_MF_STRICT = 1
    MPOL_MF_MOVE = 2
    MPOL_MF_MOVE_ALL = 4
    MPOL_MF_VALID = 7


cdef inline mempolicy *mpol_get(Cpu *cpu, mempolicy *pol) noexcept nogil:
    """Context: any; mmap_sem or a reference keeps `pol`. NULL (the default policy) stays NULL."""
    if pol != NULL:
        atomic_inc_32(cpu, &pol.refcnt)
    return pol


cdef inline void mpol_put(Cpu *cpu, mempolicy *pol) noexcept nogil:
    """Context: IRQs on, outside of any write section. The last reference frees."""
    if pol != NULL and atomic_dec_and_test_32(cpu, &pol.refcnt):
        kmem_cache_free(cpu, &machine_of(cpu).caches[KMEM_POLICY], pol)


cdef inline bint mpol_equal(const mempolicy *a, const mempolicy *b) noexcept nogil:
    """Context: mmap_sem or references keep both. By value; the mask as passed counts where later changes of the allowed
    nodes would use it."""
    cdef u32 i
    if a == b:
        return True
    if a == NULL or b == NULL or a.mode != b.mode or a.flags != b.flags or a.nodes != b.nodes:
        return False
    if a.flags & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES):
        for i in range(MAX_NUMNODES_LONGS):
            if a.user_nodemask[i] != b.user_nodemask[i]:
                return False
    return True


cdef inline bint validate_mempolicy(Cpu *cpu, const mempolicy *pol) noexcept nogil:
    """Context: mmap_sem held. Is it what mbind makes? NULL is."""
    if pol == NULL:
        return True
    if READ_ONCE_32(cpu, &pol.refcnt) == 0 or pol.mode == MPOL_DEFAULT or pol.mode >= MPOL_MAX:
        return False
    if pol.flags & ~<u32>MPOL_MODE_FLAGS:
        return False
    return pol.nodes == (0 if pol.mode == MPOL_LOCAL else 1)


# mbind(2). nmask: bit n = node n, maxnode as the system call takes it (one more than the bits that count), NULL = no
# mask. Context: process, no locks, IRQs on, may sleep, GIL not held; takes mmap_sem W. 0 or -errno.
cdef long do_mbind(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int mode,
                   const unsigned long *nmask, unsigned long maxnode, unsigned int flags) noexcept nogil
# The policy as /proc/PID/numa_maps writes it, "bind=static:0"; at most `maxlen` bytes with the NUL.
# Context: mmap_sem or a reference keeps `pol`.
cdef void mpol_to_str(char *buffer, int maxlen, const mempolicy *pol) noexcept nogil
