# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/mempolicy.c: memory policies of mappings, mbind.

As Linux 6.18 on a machine with one node, node 0: what is accepted, split, merged and refused, and with which errno. The
write section of the speculative-page-fault series (patch 06, vma_replace_policy) is around the change of vm_policy, and
the old policy is given back after it. No speculative reader looks at vm_policy yet.

The series' other two sections of this file have no counterpart: change_prot_numa (no NUMA hinting faults) and
mpol_rebind_mm (the allowed nodes never change, so a policy is never rewritten and its VMAs share it).

simplified: every page is on node 0, so a policy does not decide where a page goes, and MPOL_MF_MOVE and MPOL_MF_MOVE_ALL
leave pages where they are (Linux may move one within the node, where the mask leaves node 0 out; it counts as moved
here, even if it is pinned). The caller is privileged: MPOL_MF_MOVE_ALL is never refused. A shared mapping keeps its
policy to itself. set_mempolicy, get_mempolicy and set_mempolicy_home_node do not exist; MPOL_F_NUMA_BALANCING is
kept and does nothing.
"""
from libc.errno cimport EFAULT, EINVAL, EIO, ENOMEM
from libc.stdio cimport snprintf
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_DEP, WRITE_ONCE_PTR
from pykmm_ext.kernel.slab cimport kmem_cache_alloc
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport (
    KMEM_POLICY, MAX_NUMNODES_LONGS, PG_reserved, arch_ops, machine_of, mempolicy, mm_struct, pfn_to_page,
    pmd_t, pte_t, vm_area_struct, vma_start_write, vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.mmap cimport mmap_write_lock, mmap_write_unlock
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_offset
from pykmm_ext.mm.vma cimport find_vma, find_vma_prev
from pykmm_ext.mm.vma_merge cimport vma_modify_policy

cdef const char *policy_modes[7]
policy_modes[:] = [
    b"default", b"prefer", b"bind", b"interleave", b"local", b"prefer (many)", b"weighted interleave",
]


cdef struct nodemask:
    unsigned long bits[MAX_NUMNODES_LONGS]


cdef bint nodes_empty(const nodemask *nodes) noexcept nogil:
    """Context: any."""
    cdef u32 i
    for i in range(MAX_NUMNODES_LONGS):
        if nodes.bits[i]:
            return False
    return True


cdef int get_nodes(const arch_ops *arch, nodemask *nodes, const unsigned long *nmask,
                   unsigned long maxnode) noexcept nogil:
    """Context: any. 0, or -EINVAL: longer than a page has bits (refused unread), or a bit beyond MAX_NUMNODES is set."""
    cdef unsigned long i, word
    memset(nodes, 0, sizeof(nodemask))
    maxnode -= 1                                 # 0 wraps: a mask without end, as in Linux
    if maxnode == 0 or nmask == NULL:
        return 0
    if maxnode > <unsigned long>8 << arch.page_shift:
        return -EINVAL
    for i in range((maxnode + 63) // 64):
        word = nmask[i]
        if maxnode - i * 64 < 64:
            word &= (<unsigned long>1 << (maxnode & 63)) - 1
        if i < MAX_NUMNODES_LONGS:
            nodes.bits[i] = word
        elif word:
            return -EINVAL
    return 0


cdef mempolicy *mpol_new(Cpu *cpu, u32 mode, u32 flags, const nodemask *nodes, int *err) noexcept nogil:
    """Context: process, IRQs on. A policy with one reference, the caller's. NULL with *err = 0 is the default policy, with
    -EINVAL (mode and mask do not go together, or the mask has no node of the machine) or -ENOMEM an error.

    A relative mask is folded onto the nodes that there are: with one node, every bit of it means node 0."""
    cdef bint empty = nodes_empty(nodes)
    cdef bint user_mask = flags & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES) != 0
    cdef mempolicy *pol
    cdef u32 i
    err[0] = -EINVAL
    if mode == MPOL_DEFAULT:
        if empty:
            err[0] = 0
        return NULL
    if mode == MPOL_PREFERRED and empty:
        mode = MPOL_LOCAL
    if mode == MPOL_LOCAL:
        if not empty or user_mask:
            return NULL
    elif empty or not (nodes.bits[0] & 1 or flags & MPOL_F_RELATIVE_NODES):
        return NULL
    err[0] = -ENOMEM
    pol = <mempolicy *>kmem_cache_alloc(cpu, &machine_of(cpu).caches[KMEM_POLICY])
    if pol == NULL:
        return NULL
    err[0] = 0
    pol.refcnt = 1
    pol.mode = mode
    pol.flags = flags
    pol.nodes = 0 if mode == MPOL_LOCAL else 1
    for i in range(MAX_NUMNODES_LONGS):
        pol.user_nodemask[i] = nodes.bits[i]
    return pol


cdef bint has_pages(Cpu *cpu, vm_area_struct *vma, unsigned long addr, unsigned long end) noexcept nogil:
    """Context: mmap_sem W. Is a page of memory mapped in [addr, end)? The zero page and special entries are none. Racy
    against speculative faults, which may put one in behind the walk."""
    cdef mm_struct *mm = vma.vm_mm
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long span = <unsigned long>1 << arch.level_shift[1]
    cdef unsigned long next_addr
    cdef pmd_t *pmd
    cdef pmd_t pmdval
    cdef pte_t *ptep
    cdef pte_t pte
    while addr < end:
        next_addr = (addr + span) & ~(span - 1)
        if next_addr > end:
            next_addr = end
        pmd = mm_find_pmd(cpu, mm, addr)
        pmdval = READ_ONCE_DEP(cpu, pmd, 1) if pmd != NULL else 0
        if pmd != NULL and not arch.table_none(pmdval) and not arch.table_bad(pmdval):
            ptep = pte_offset(mm, pmdval, addr)
            while addr < next_addr:
                pte = READ_ONCE(cpu, ptep)
                if (not arch.pte_none(pte) and arch.pte_present(pte) and not arch.pte_special(pte)
                        and not READ_ONCE(cpu, &pfn_to_page(mm.machine, arch.pte_pfn(pte)).flags) & PG_reserved):
                    return True
                ptep += 1
                addr += <unsigned long>1 << arch.page_shift
        addr = next_addr
    return False


cdef int queue_pages_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end, const nodemask *nodes,
                           unsigned int flags, bint holes_ok) noexcept nogil:
    """Context: mmap_sem W. -EFAULT for a hole (with holes_ok only where nothing at all is mapped), -EIO for a page that the
    mask does not want and that may not be moved; in the order of addresses, before anything is changed. 0."""
    cdef vm_area_struct *vma = find_vma(cpu, mm, start)
    cdef bint misplaced = flags == MPOL_MF_STRICT and not nodes.bits[0] & 1
    if vma == NULL or vma.vm_start >= end or (vma.vm_start > start and not holes_ok):
        return -EFAULT
    while vma != NULL and vma.vm_start < end:
        if not holes_ok and vma.vm_end < end and (vma.vm_next == NULL or vma.vm_next.vm_start > vma.vm_end):
            return -EFAULT
        if misplaced and has_pages(cpu, vma, max(start, vma.vm_start), min(end, vma.vm_end)):
            return -EIO
        vma = vma.vm_next
    return 0


cdef void vma_replace_policy(Cpu *cpu, vm_area_struct *vma, mempolicy *pol) noexcept nogil:
    """Context: mmap_sem W, may sleep. The old policy goes after the section (patch 06)."""
    cdef mempolicy *old = vma.vm_policy
    mpol_get(cpu, pol)
    vma_start_write(cpu, vma)
    vma_write_begin(cpu, vma, 0)
    WRITE_ONCE_PTR(cpu, &vma.vm_policy, pol)
    vma_write_end(cpu, vma)
    mpol_put(cpu, old)


cdef int mbind_range(Cpu *cpu, vm_area_struct *vma, vm_area_struct **pprev, unsigned long start, unsigned long end,
                     mempolicy *new_pol) noexcept nogil:
    """Context: mmap_sem W, may sleep. The part of [start, end) that is in `vma`; *pprev = the VMA that covers it afterwards.
    0 or -ENOMEM."""
    cdef unsigned long vmend = min(end, vma.vm_end)
    cdef unsigned long vmstart = vma.vm_start
    cdef int err = 0
    if start > vma.vm_start:
        pprev[0] = vma
        vmstart = start
    if mpol_equal(vma.vm_policy, new_pol):
        pprev[0] = vma
        return 0
    vma = vma_modify_policy(cpu, pprev[0], vma, vmstart, vmend, new_pol, &err)
    if vma == NULL:
        return err
    pprev[0] = vma
    vma_replace_policy(cpu, vma, new_pol)
    return 0


cdef long do_mbind(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int mode,
                   const unsigned long *nmask, unsigned long maxnode, unsigned int flags) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0, -EINVAL, -EFAULT (a hole), -EIO (MPOL_MF_STRICT),
    -ENOMEM (memory, or too many mappings: what lies before is changed)."""
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef u32 mode_flags = <u32>mode & MPOL_MODE_FLAGS
    cdef u32 lmode = <u32>mode & ~<u32>MPOL_MODE_FLAGS
    cdef unsigned long end
    cdef nodemask nodes
    cdef mempolicy *new_pol
    cdef vm_area_struct *vma
    cdef vm_area_struct *prev = NULL
    cdef int err
    if lmode >= MPOL_MAX:
        return -EINVAL
    if mode_flags & MPOL_F_STATIC_NODES and mode_flags & MPOL_F_RELATIVE_NODES:
        return -EINVAL
    if mode_flags & MPOL_F_NUMA_BALANCING and lmode != MPOL_BIND and lmode != MPOL_PREFERRED_MANY:
        return -EINVAL
    err = get_nodes(mm.arch, &nodes, nmask, maxnode)
    if err:
        return err
    if flags & ~<unsigned int>MPOL_MF_VALID or start & mask:
        return -EINVAL
    if lmode == MPOL_DEFAULT:
        flags &= ~<unsigned int>MPOL_MF_STRICT
    end = start + ((len + mask) & ~mask)
    if end < start:
        return -EINVAL
    if end == start:
        return 0
    new_pol = mpol_new(cpu, lmode, mode_flags, &nodes, &err)
    if err:
        return err
    mmap_write_lock(cpu, mm, start, end)
    err = queue_pages_range(cpu, mm, start, end, &nodes, flags, new_pol == NULL)
    if err == 0:
        vma = find_vma_prev(cpu, mm, start, &prev)
        while vma != NULL and vma.vm_start < end:
            err = mbind_range(cpu, vma, &prev, start, end, new_pol)
            if err:
                break
            vma = prev.vm_next
    mmap_write_unlock(cpu, mm)
    mpol_put(cpu, new_pol)
    return err


cdef void mpol_to_str(char *buffer, int maxlen, const mempolicy *pol) noexcept nogil:
    """Context: mmap_sem or a reference keeps `pol`."""
    cdef const char *how = b""
    cdef const char *balancing = b""
    cdef u32 flags = pol.flags if pol != NULL else 0
    if flags & MPOL_F_STATIC_NODES:
        how = b"static"
    elif flags & MPOL_F_RELATIVE_NODES:
        how = b"relative"
    if flags & MPOL_F_NUMA_BALANCING:
        balancing = b"|balancing" if how[0] else b"balancing"
    snprintf(buffer, maxlen, b"%s%s%s%s%s", policy_modes[pol.mode if pol != NULL else 0], b"=" if flags else b"", how,
             balancing, b":0" if pol != NULL and pol.nodes else b"")
