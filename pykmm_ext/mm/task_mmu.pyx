# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the core has no Python objects; the entry points at the end only wrap it)
"""fs/proc/task_mmu.c: the text of /proc/PID/maps and smaps, and the words of pagemap.

Formats as Linux 6.18 on x86-64. simplified: the whole text is made in one go under mmap_sem, and smaps has the lines that
mean something here (no swap, KSM or huge pages).
"""
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

from pykmm_ext.handle cimport cpu_disown, cpu_own, machine_get, machine_put
from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, READ_ONCE_DEP
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport (
    PG_anon, PG_dirty, VM_ACCOUNT, VM_DONTCOPY, VM_DONTDUMP, VM_DONTEXPAND, VM_EXEC, VM_GROWSDOWN, VM_HUGEPAGE,
    VM_HUGETLB, VM_IO, VM_LOCKED, VM_LOCKONFAULT, VM_MAYEXEC, VM_MAYREAD, VM_MAYSHARE, VM_MAYWRITE, VM_MERGEABLE,
    VM_MIXEDMAP, VM_NOHUGEPAGE, VM_NORESERVE, VM_PFNMAP, VM_RAND_READ, VM_READ, VM_SEQ_READ, VM_SHARED, VM_SOFTDIRTY,
    VM_SYNC, VM_WIPEONFORK, VM_WRITE, arch_ops, mm_struct, page, pfn_to_page, pmd_t, pte_t,
    vm_area_struct,
)
from pykmm_ext.mm.mmap cimport mmap_read_lock, mmap_read_unlock
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr, pte_offset
from pykmm_ext.mm.vma cimport find_vma
from pykmm_ext.mm_binding cimport MmStruct

cdef enum:
    NAME_COLUMN = 73

cdef u64 PM_SOFT_DIRTY = <u64>1 << 55
cdef u64 PM_MMAP_EXCLUSIVE = <u64>1 << 56
cdef u64 PM_FILE = <u64>1 << 61
cdef u64 PM_PRESENT = <u64>1 << 63


# ---- a growing text (seq_file) ----

cdef struct seq_file:
    char *buf
    size_t count
    size_t size
    bint failed


cdef bint seq_room(seq_file *m, size_t n) noexcept nogil:
    """Context: any. Makes room for n more characters and a NUL."""
    cdef size_t want = m.size if m.size else 4096
    cdef char *grown
    if m.failed:
        return False
    while want - m.count <= n:
        want *= 2
    if want != m.size:
        grown = <char *>realloc(m.buf, want)
        if grown == NULL:
            m.failed = True
            return False
        m.buf = grown
        m.size = want
    return True


cdef void seq_puts(seq_file *m, const char *s) noexcept nogil:
    """Context: any. A newline in a name becomes \\012, as seq_path() writes it."""
    while s[0] and seq_room(m, 4):
        if s[0] == c"\n":
            m.count += snprintf(m.buf + m.count, 5, b"\\012")
        else:
            m.buf[m.count] = s[0]
            m.count += 1
        s += 1


cdef void seq_newline(seq_file *m) noexcept nogil:
    if seq_room(m, 1):
        m.buf[m.count] = c"\n"
        m.count += 1


cdef char *seq_finish(seq_file *m, size_t *size) noexcept nogil:
    """Context: any. The text, the caller's to free; NULL = no memory."""
    if not seq_room(m, 0):
        free(m.buf)
        return NULL
    m.buf[m.count] = 0
    size[0] = m.count
    return m.buf


# ---- maps ----

cdef void show_map_vma(seq_file *m, const vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem held. One line of maps."""
    cdef unsigned long flags = vma.vm_flags
    cdef unsigned long long pgoff = 0
    cdef unsigned long ino = 0
    cdef u32 dev_major = 0, dev_minor = 0
    cdef const char *name
    cdef size_t line = m.count
    if vma.vm_file != NULL:
        pgoff = <unsigned long long>vma.vm_pgoff << vma.vm_mm.arch.page_shift
        ino = vma.vm_file.ino
        dev_major = vma.vm_file.dev_major
        dev_minor = vma.vm_file.dev_minor
        name = vma.vm_file.name
    else:
        name = vma_label(vma)
    if not seq_room(m, 160):
        return
    m.count += snprintf(
        m.buf + m.count, 160, b"%08lx-%08lx %c%c%c%c %08llx %02x:%02x %lu ", vma.vm_start, vma.vm_end,
        c"r" if flags & VM_READ else c"-", c"w" if flags & VM_WRITE else c"-", c"x" if flags & VM_EXEC else c"-",
        c"s" if flags & VM_MAYSHARE else c"p", pgoff, dev_major, dev_minor, ino)
    if name != NULL:
        # seq_pad(): up to the column before the name's, then one blank in any case
        while m.count - line < NAME_COLUMN - 1:
            m.buf[m.count] = c" "
            m.count += 1
        m.buf[m.count] = c" "
        m.count += 1
        seq_puts(m, name)
    seq_newline(m)


cdef char *show_maps(Cpu *cpu, mm_struct *mm, size_t *size) noexcept nogil:
    """Context: process, no locks, may sleep."""
    cdef seq_file m
    cdef vm_area_struct *vma
    memset(&m, 0, sizeof(m))
    mmap_read_lock(cpu, mm)
    vma = mm.mmap
    while vma != NULL and not m.failed:
        show_map_vma(&m, vma)
        vma = vma.vm_next
    mmap_read_unlock(cpu, mm)
    return seq_finish(&m, size)


# ---- smaps ----

cdef void smaps_pte_entry(Cpu *cpu, vm_area_struct *vma, pte_t pte, mem_size_stats *mss) noexcept nogil:
    """Context: PTL held. The zero page counts for nobody."""
    cdef const arch_ops *arch = vma.vm_mm.arch
    cdef unsigned long size = <unsigned long>1 << arch.page_shift
    cdef page *pg
    cdef unsigned long flags
    cdef u32 mapcount
    cdef u64 pss
    if arch.pte_none(pte) or not arch.pte_present(pte) or arch.pte_special(pte):
        return
    pg = pfn_to_page(vma.vm_mm.machine, arch.pte_pfn(pte))
    if pg == vma.vm_mm.machine.zero_page:
        return
    flags = READ_ONCE(cpu, &pg.flags)
    mapcount = READ_ONCE_32(cpu, &pg._mapcount)
    mss.resident += size
    if flags & PG_anon:
        mss.anonymous += size
    if arch.pte_young(pte):
        mss.referenced += size
    pss = <u64>size << PSS_SHIFT
    if mapcount > 1:
        if flags & PG_dirty or arch.pte_dirty(pte):
            mss.shared_dirty += size
        else:
            mss.shared_clean += size
        pss //= mapcount
    elif flags & PG_dirty or arch.pte_dirty(pte):
        mss.private_dirty += size
    else:
        mss.private_clean += size
    mss.pss += pss
    if vma.vm_flags & VM_LOCKED:
        mss.pss_locked += pss


cdef void smap_gather_stats(Cpu *cpu, vm_area_struct *vma, mem_size_stats *mss) noexcept nogil:
    """Context: mmap_sem held; takes the PTLs one after the other."""
    cdef mm_struct *mm = vma.vm_mm
    cdef unsigned long span = <unsigned long>1 << mm.arch.level_shift[1]
    cdef unsigned long addr = vma.vm_start, end
    cdef pmd_t *pmd
    cdef pmd_t pmdval
    cdef spinlock_t *ptl
    cdef pte_t *ptep
    while addr < vma.vm_end:
        end = (addr + span) & ~(span - 1)
        if end > vma.vm_end:
            end = vma.vm_end
        pmd = mm_find_pmd(cpu, mm, addr)
        if pmd != NULL:
            pmdval = READ_ONCE_DEP(cpu, pmd, 1)
            if not mm.arch.table_none(pmdval) and not mm.arch.table_bad(pmdval):
                ptl = pte_lockptr(cpu, mm, pmdval)
                spin_lock(cpu, ptl)
                ptep = pte_offset(mm, pmdval, addr)
                while addr < end:
                    smaps_pte_entry(cpu, vma, READ_ONCE(cpu, ptep), mss)
                    ptep += 1
                    addr += <unsigned long>1 << mm.arch.page_shift
                spin_unlock(cpu, ptl)
        addr = end


cdef void seq_kb(seq_file *m, const char *key, unsigned long nbytes) noexcept nogil:
    """Context: any. A line like "Rss:                   8 kB"."""
    if seq_room(m, 64):
        m.count += snprintf(m.buf + m.count, 64, b"%-16s%8lu kB\n", key, nbytes >> 10)


cdef void seq_flag(seq_file *m, const vm_area_struct *vma, unsigned long flag, const char *mnemonic) noexcept nogil:
    if vma.vm_flags & flag:
        seq_puts(m, mnemonic)
        seq_puts(m, b" ")


cdef void show_smap_vma_flags(seq_file *m, const vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem held. Two letters per flag, in the order of their bits."""
    seq_puts(m, b"VmFlags: ")
    seq_flag(m, vma, VM_READ, b"rd")
    seq_flag(m, vma, VM_WRITE, b"wr")
    seq_flag(m, vma, VM_EXEC, b"ex")
    seq_flag(m, vma, VM_SHARED, b"sh")
    seq_flag(m, vma, VM_MAYREAD, b"mr")
    seq_flag(m, vma, VM_MAYWRITE, b"mw")
    seq_flag(m, vma, VM_MAYEXEC, b"me")
    seq_flag(m, vma, VM_MAYSHARE, b"ms")
    seq_flag(m, vma, VM_GROWSDOWN, b"gd")
    seq_flag(m, vma, VM_PFNMAP, b"pf")
    seq_flag(m, vma, VM_LOCKED, b"lo")
    seq_flag(m, vma, VM_IO, b"io")
    seq_flag(m, vma, VM_SEQ_READ, b"sr")
    seq_flag(m, vma, VM_RAND_READ, b"rr")
    seq_flag(m, vma, VM_DONTCOPY, b"dc")
    seq_flag(m, vma, VM_DONTEXPAND, b"de")
    seq_flag(m, vma, VM_LOCKONFAULT, b"lf")
    seq_flag(m, vma, VM_ACCOUNT, b"ac")
    seq_flag(m, vma, VM_NORESERVE, b"nr")
    seq_flag(m, vma, VM_HUGETLB, b"ht")
    seq_flag(m, vma, VM_SYNC, b"sf")
    seq_flag(m, vma, VM_WIPEONFORK, b"wf")
    seq_flag(m, vma, VM_DONTDUMP, b"dd")
    seq_flag(m, vma, VM_SOFTDIRTY, b"sd")
    seq_flag(m, vma, VM_MIXEDMAP, b"mm")
    seq_flag(m, vma, VM_HUGEPAGE, b"hg")
    seq_flag(m, vma, VM_NOHUGEPAGE, b"nh")
    seq_flag(m, vma, VM_MERGEABLE, b"mg")
    seq_newline(m)


cdef char *show_smaps(Cpu *cpu, mm_struct *mm, size_t *size) noexcept nogil:
    """Context: process, no locks, may sleep."""
    cdef seq_file m
    cdef mem_size_stats mss
    cdef vm_area_struct *vma
    cdef unsigned long page_size = <unsigned long>1 << mm.arch.page_shift
    memset(&m, 0, sizeof(m))
    mmap_read_lock(cpu, mm)
    vma = mm.mmap
    while vma != NULL and not m.failed:
        memset(&mss, 0, sizeof(mss))
        smap_gather_stats(cpu, vma, &mss)
        show_map_vma(&m, vma)
        seq_kb(&m, b"Size:", vma.vm_end - vma.vm_start)
        seq_kb(&m, b"KernelPageSize:", page_size)
        seq_kb(&m, b"MMUPageSize:", page_size)
        seq_kb(&m, b"Rss:", mss.resident)
        seq_kb(&m, b"Pss:", mss.pss >> PSS_SHIFT)
        seq_kb(&m, b"Shared_Clean:", mss.shared_clean)
        seq_kb(&m, b"Shared_Dirty:", mss.shared_dirty)
        seq_kb(&m, b"Private_Clean:", mss.private_clean)
        seq_kb(&m, b"Private_Dirty:", mss.private_dirty)
        seq_kb(&m, b"Referenced:", mss.referenced)
        seq_kb(&m, b"Anonymous:", mss.anonymous)
        seq_kb(&m, b"Locked:", mss.pss_locked >> PSS_SHIFT)
        show_smap_vma_flags(&m, vma)
        vma = vma.vm_next
    mmap_read_unlock(cpu, mm)
    return seq_finish(&m, size)


# ---- pagemap ----

cdef u64 pte_to_pagemap_entry(Cpu *cpu, const vm_area_struct *vma, pte_t pte) noexcept nogil:
    """Context: mmap_sem held; the entry is a racy copy, as the file's readers expect."""
    cdef const arch_ops *arch = vma.vm_mm.arch
    cdef u64 word = PM_SOFT_DIRTY if vma.vm_flags & VM_SOFTDIRTY else 0
    cdef page *pg
    if arch.pte_none(pte) or not arch.pte_present(pte):
        return word
    word |= PM_PRESENT | arch.pte_pfn(pte)
    if arch.pte_soft_dirty(pte):
        word |= PM_SOFT_DIRTY
    pg = pfn_to_page(vma.vm_mm.machine, arch.pte_pfn(pte))
    if arch.pte_special(pte) or pg == vma.vm_mm.machine.zero_page:
        return word
    if not READ_ONCE(cpu, &pg.flags) & PG_anon:
        word |= PM_FILE
    if READ_ONCE_32(cpu, &pg._mapcount) == 1:
        word |= PM_MMAP_EXCLUSIVE
    return word


cdef void pagemap_read(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long npages, u64 *out) noexcept nogil:
    """Context: process, no locks, may sleep."""
    cdef vm_area_struct *vma = NULL
    cdef unsigned long addr = start, i
    cdef pmd_t *pmd
    cdef pmd_t pmdval
    cdef pte_t pte
    mmap_read_lock(cpu, mm)
    for i in range(npages):
        out[i] = 0
        if vma == NULL or addr >= vma.vm_end:
            vma = find_vma(cpu, mm, addr)
        if vma == NULL:
            memset(&out[i], 0, (npages - i) * sizeof(u64))
            break
        if addr >= vma.vm_start:
            pte = 0
            pmd = mm_find_pmd(cpu, mm, addr)
            if pmd != NULL:
                pmdval = READ_ONCE_DEP(cpu, pmd, 1)
                if not mm.arch.table_none(pmdval) and not mm.arch.table_bad(pmdval):
                    pte = READ_ONCE_DEP(cpu, pte_offset(mm, pmdval, addr), 1)
            out[i] = pte_to_pagemap_entry(cpu, vma, pte)
        addr += <unsigned long>1 << mm.arch.page_shift
    mmap_read_unlock(cpu, mm)


# ---- from Python ----

def maps(MmStruct mm not None) -> str:
    """The text of /proc/PID/maps, undecodable bytes of names as surrogates. MemoryError when there is no room for it."""
    return _text(mm, False)


def smaps(MmStruct mm not None) -> str:
    """The text of /proc/PID/smaps. MemoryError when there is no room for it."""
    return _text(mm, True)


cdef str _text(MmStruct self, bint sizes):
    cdef char *text
    cdef size_t size = 0
    cdef Cpu *cpu
    machine_get(self.machine)
    try:
        if self.exited or self.mm == NULL:
            raise ValueError("this address space has exited")
        cpu = self.machine.m.cpus[0]
        with nogil:
            cpu_own(cpu)
            text = show_smaps(cpu, self.mm, &size) if sizes else show_maps(cpu, self.mm, &size)
            cpu_disown(cpu)
        if text == NULL:
            raise MemoryError()
        try:
            return text[:size].decode("utf-8", "surrogateescape")
        finally:
            free(text)
    finally:
        machine_put(self.machine)


def pagemap(MmStruct mm not None, unsigned long addr, unsigned long npages) -> list:
    """`npages` words of /proc/PID/pagemap from the page of `addr` on. MemoryError when there is no room for them."""
    cdef u64 *words
    cdef unsigned long i
    cdef Cpu *cpu
    machine_get(mm.machine)
    try:
        if mm.exited or mm.mm == NULL:
            raise ValueError("this address space has exited")
        if npages > mm.mm.task_size >> mm.mm.arch.page_shift:
            raise ValueError(f"npages {npages} is more than an address space has")
        words = <u64 *>malloc((npages + 1) * sizeof(u64))
        if words == NULL:
            raise MemoryError()
        try:
            cpu = mm.machine.m.cpus[0]
            with nogil:
                cpu_own(cpu)
                pagemap_read(cpu, mm.mm, addr & ~((<unsigned long>1 << mm.mm.arch.page_shift) - 1), npages, words)
                cpu_disown(cpu)
            return [words[i] for i in range(npages)]
        finally:
            free(words)
    finally:
        machine_put(mm.machine)
