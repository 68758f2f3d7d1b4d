# SPDX-License-Identifier: GPL-2.0-only
"""The Python face of an address space (no kernel file): MmStruct. System calls, accesses, what is to be seen."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINVAL, ENOMEM
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from pykmm_ext.arch cimport arch_get_ops
from pykmm_ext.handle cimport (
    File, MachineHandle, as_bytes, as_int, as_ulong, end_mm, file_check, machine_enter, machine_leave, machine_reap,
    pykmm_errors, raise_alloc, raise_errno,
)
from pykmm_ext.machine.cpu cimport Cpu, u8, u32, u64
from pykmm_ext.machine.tlb cimport copy_from_user, copy_to_user, switch_mm, user_touch, walk_page_table
from pykmm_ext.mm.brk cimport ksys_brk
from pykmm_ext.mm.filemap cimport fput
from pykmm_ext.mm.fork cimport dup_mm
from pykmm_ext.mm.madvise cimport do_madvise, do_mincore, do_msync
from pykmm_ext.mm.mempolicy cimport do_mbind
from pykmm_ext.mm.mlock cimport do_mlock, do_mlockall, do_munlock, do_munlockall
from pykmm_ext.mm.mm_types cimport (
    KMM_ACCESS_EXEC, KMM_ACCESS_READ, KMM_ACCESS_WRITE, KMM_BUS_ADRERR, KMM_FAULT_OOM, KMM_SEGV_ACCERR, MM_ANONPAGES,
    MM_FILEPAGES,
)
from pykmm_ext.mm.mm_types cimport file as file_t
from pykmm_ext.mm.mm_types cimport be64_to_cpu, mm_struct, vm_area_struct
from pykmm_ext.mm.mmap cimport find_vma, ksys_mmap, mmap_read_lock, mmap_read_unlock, vm_munmap
from pykmm_ext.mm.mprotect cimport do_mprotect
from pykmm_ext.mm.mremap cimport sys_mremap
from pykmm_ext.pin cimport pin_pages, pins_reap
from pykmm_ext.vma_binding cimport copy_vma_facts, make_vma, vma_copy


cdef MmStruct wrap_mm(MachineHandle machine, mm_struct *mm):
    """The Python object of a new address space, whose reference it takes. Context: GIL held."""
    cdef MmStruct result = MmStruct.__new__(MmStruct)
    result.mm = mm
    result.machine = machine
    result.exited = False
    return result


cdef Cpu *_mm_enter(MmStruct self, object cpu) except NULL:
    """Begin a call in an address space: `self.mm` is live and active on the Cpu that is returned."""
    cdef Cpu *c
    if self.exited:
        raise ValueError("this address space has exited")
    c = machine_enter(self.machine, cpu)
    if self.exited:     # meanwhile, by the thread that owned the Cpu
        machine_leave(self.machine, c)
        raise ValueError("this address space has exited")
    if c.active_mm != self.mm:
        with nogil:
            switch_mm(c, self.mm)
    return c


cdef int _raise_fault(int result, u64 address, u32 code) except -1:
    """What a failed user access raises. Context: GIL held."""
    if result == -ENOMEM or code == KMM_FAULT_OOM:
        raise MemoryError(f"out of simulated memory at {address:#x}")
    if code == KMM_BUS_ADRERR:
        raise pykmm_errors().BusError(address)
    raise pykmm_errors().SegmentationFault(address, "ACCERR" if code == KMM_SEGV_ACCERR else "MAPERR")


cdef list _vmas(MmStruct self, object cpu):
    """Every mapping, by address. Context: GIL held, released meanwhile."""
    cdef vma_copy *copies = NULL
    cdef vm_area_struct *vma
    cdef u32 n = 0, i, room = 0
    cdef Cpu *c = _mm_enter(self, cpu)
    try:
        with nogil:
            mmap_read_lock(c, self.mm)
            room = self.mm.map_count
            copies = <vma_copy *>calloc(room + 1, sizeof(vma_copy))
            vma = self.mm.mmap
            while copies != NULL and vma != NULL and n < room:
                copy_vma_facts(c, vma, &copies[n])
                n += 1
                vma = vma.vm_next
            mmap_read_unlock(c, self.mm)
        if copies == NULL:
            raise MemoryError()
        return [make_vma(&copies[i], self.mm.arch.page_shift) for i in range(n)]
    finally:
        with nogil:
            for i in range(n):
                if copies[i].f != NULL:
                    fput(c, copies[i].f)
            free(copies)
        machine_leave(self.machine, c)


cdef dict _ACCESS = {"r": KMM_ACCESS_READ, "w": KMM_ACCESS_WRITE, "x": KMM_ACCESS_EXEC,
                     "read": KMM_ACCESS_READ, "write": KMM_ACCESS_WRITE, "exec": KMM_ACCESS_EXEC}


@cython.no_gc_clear
cdef class MmStruct:
    """An address space; made by :meth:`Machine.mm` and :meth:`fork`.

    System calls take the integers of the stdlib mmap module and raise OSError with the errno that Linux gives. Accesses
    raise :class:`pykmm.SegmentationFault` or :class:`pykmm.BusError`. `cpu` names the simulated CPU that runs the call; a
    CPU runs one call at a time: threads that name the same one wait for each other, those that name others run beside it.
    """

    def __init__(self):
        raise TypeError("address spaces are made by Machine.mm()")

    def __dealloc__(self):
        if self.mm != NULL and not self.exited and self.machine is not None and self.machine.m != NULL:
            self.machine.orphan_mms.append(<size_t>self.mm)

    def mmap(self, addr, length, prot=3, flags=0x22, *, File file=None, offset=0, cpu=0):
        """Map `length` bytes; returns the address.

        The defaults are PROT_READ | PROT_WRITE and MAP_PRIVATE | MAP_ANONYMOUS. Without MAP_ANONYMOUS a `file` is
        needed, otherwise EBADF.
        """
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length"), p = as_ulong(prot, "prot")
        cdef unsigned long fl = as_ulong(flags, "flags"), off = as_ulong(offset, "offset")
        cdef file_t *f = NULL
        cdef long r
        cdef Cpu *c
        if file is not None:
            if file.machine is not self.machine:
                raise ValueError("the file belongs to another machine")
            file_check(file)
            if not fl & 0x20:
                f = file.f
        c = _mm_enter(self, cpu)
        if f != NULL and file.f == NULL:
            machine_leave(self.machine, c)
            raise ValueError("this file is closed")
        with nogil:
            r = ksys_mmap(c, self.mm, a, n, p, fl, f, off)
        machine_leave(self.machine, c)
        if -4096 < r < 0:
            raise_errno(r)
        return <unsigned long>r

    def munmap(self, addr, length, *, cpu=0):
        """Unmap [addr, addr + length)."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = vm_munmap(c, self.mm, a, n)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def mprotect(self, addr, length, prot, *, cpu=0):
        """Change the protection of a range; all of it must be mapped (ENOMEM)."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length"), p = as_ulong(prot, "prot")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = do_mprotect(c, self.mm, a, n, p)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def madvise(self, addr, length, advice, *, cpu=0):
        """Give advice about a range (MADV_ integers)."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length")
        cdef int how = as_int(advice, "advice")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = do_madvise(c, self.mm, a, n, how)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def mlock(self, addr, length, flags=0, *, cpu=0):
        """mlock2(): lock a range into memory; `flags` 1 = MLOCK_ONFAULT."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length")
        cdef int fl = as_int(flags, "flags")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = do_mlock(c, self.mm, a, n, fl)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def munlock(self, addr, length, *, cpu=0):
        """Undo mlock()."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = do_munlock(c, self.mm, a, n)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def mlockall(self, flags, *, cpu=0):
        """Lock everything: MCL_CURRENT (1), MCL_FUTURE (2), MCL_ONFAULT (4)."""
        cdef int fl = as_int(flags, "flags")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = do_mlockall(c, self.mm, fl)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def munlockall(self, *, cpu=0):
        """Undo mlockall() and every mlock()."""
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = do_munlockall(c, self.mm)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def mbind(self, addr, length, mode, nodes=(), flags=0, *, cpu=0):
        """mbind(): the memory policy of a range. `mode` is one of the MPOL modes, with flag bits, `nodes` the numbers
        of the nodes that it names (the machine has node 0 alone), `flags` MPOL_MF_STRICT (1), _MOVE (2), _MOVE_ALL (4).

        OSError: EINVAL (mode, flags, alignment, nodes that do not exist), EFAULT (a hole), EIO (MPOL_MF_STRICT and
        pages where the mask does not want them), ENOMEM (too many mappings). ValueError for a negative node.
        """
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length"), node
        cdef int how = as_int(mode, "mode")
        cdef unsigned int fl = <unsigned int>as_int(flags, "flags")
        cdef unsigned long mask[512]
        cdef unsigned long maxnode = 0
        cdef long r
        cdef Cpu *c
        memset(mask, 0, sizeof(mask))
        for number in nodes:
            node = as_ulong(number, "a node")
            if node >= 8 * sizeof(mask):         # more than the kernel reads
                raise_errno(-EINVAL)
            mask[node >> 6] |= <unsigned long>1 << (node & 63)
            maxnode = max(maxnode, node + 2)     # the kernel takes one off
        c = _mm_enter(self, cpu)
        with nogil:
            r = do_mbind(c, self.mm, a, n, how, mask if maxnode else NULL, maxnode, fl)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def mremap(self, old_addr, old_len, new_len, flags=0, new_addr=0, *, cpu=0):
        """Resize or move a mapping (MREMAP_ integers); returns its address."""
        cdef unsigned long a = as_ulong(old_addr, "old_addr"), n = as_ulong(old_len, "old_len")
        cdef unsigned long m = as_ulong(new_len, "new_len"), fl = as_ulong(flags, "flags"), b = as_ulong(new_addr, "new_addr")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = sys_mremap(c, self.mm, a, n, m, fl, b)
        machine_leave(self.machine, c)
        if -4096 < r < 0:
            raise_errno(r)
        return <unsigned long>r

    def brk(self, addr=0, *, cpu=0):
        """Set the end of the heap; returns the break as it is then (as the system call: unchanged on failure)."""
        cdef unsigned long a = as_ulong(addr, "addr"), r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = ksys_brk(c, self.mm, a)
        machine_leave(self.machine, c)
        return r

    def msync(self, addr, length, flags, *, cpu=0):
        """Synchronise a range with its file (MS_ integers)."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length")
        cdef int fl = as_int(flags, "flags")
        cdef long r
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = do_msync(c, self.mm, a, n, fl)
        machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def mincore(self, addr, length, *, cpu=0):
        """One byte per page of the range: 1 = resident."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length"), step, pages
        cdef long r
        cdef u8 *vec
        cdef unsigned long size = self.machine.page_size
        cdef list parts = []
        cdef Cpu *c
        if n > arch_get_ops(self.machine.arch_object).task_size:
            raise_errno(-ENOMEM)
        while True:
            step = min(n, size << 16)
            pages = (step + size - 1) // size
            part = PyBytes_FromStringAndSize(NULL, pages)
            vec = <u8 *>PyBytes_AS_STRING(part)
            c = _mm_enter(self, cpu)
            with nogil:
                r = do_mincore(c, self.mm, a, step, vec)
            machine_leave(self.machine, c)
            if r < 0:
                raise_errno(r)
            parts.append(part)
            a += step
            n -= step
            if n == 0:
                return b"".join(parts)

    # -- accesses --

    def load(self, addr, n, *, cpu=0):
        """`n` bytes from `addr`, read as the program would: through TLB, page tables and faults."""
        cdef unsigned long a = as_ulong(addr, "addr"), count = as_ulong(n, "n")
        cdef int r
        cdef u64 where
        cdef u32 code
        cdef char *to
        cdef Cpu *c
        if count > 0x7fffffffffffffff:
            raise ValueError(f"n must be below 2**63, not {count}")
        if count >= arch_get_ops(self.machine.arch_object).task_size:
            # More than any address space has; where it ends depends on what is mapped, so look for the end first.
            self.touch(addr, count, "r", cpu=cpu)
        result = PyBytes_FromStringAndSize(NULL, count)
        to = PyBytes_AS_STRING(result)
        c = _mm_enter(self, cpu)
        with nogil:
            r = copy_from_user(c, to, a, count)
        where, code = c.fault_address, c.fault_code
        machine_leave(self.machine, c)
        if r < 0:
            _raise_fault(r, where, code)
        return result

    def store(self, addr, data, *, cpu=0):
        """Write `data` at `addr` as the program would. Bytes before a bad page are written."""
        cdef unsigned long a = as_ulong(addr, "addr")
        cdef const u8[::1] view = as_bytes(data, "data")
        cdef unsigned long count = view.shape[0]
        cdef const u8 *src = &view[0] if count else NULL
        cdef int r
        cdef u64 where
        cdef u32 code
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            r = copy_to_user(c, a, src, count)
        where, code = c.fault_address, c.fault_code
        machine_leave(self.machine, c)
        if r < 0:
            _raise_fault(r, where, code)

    def touch(self, addr, length=1, access="r", *, cpu=0):
        """Access every page of [addr, addr + length): "r" reads, "w" writes, "x" executes."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(length, "length"), last
        cdef unsigned long size = self.machine.page_size
        cdef u32 how
        cdef int r = 0
        cdef u64 where
        cdef u32 code
        cdef Cpu *c
        if access not in _ACCESS:
            raise ValueError(f'access must be "r", "w" or "x", not {access!r}')
        how = _ACCESS[access]
        c = _mm_enter(self, cpu)
        last = a + n - 1
        if last < a:
            last = 0xffffffffffffffff
        with nogil:
            while n and a <= last:
                r = user_touch(c, a, how)
                if r < 0:
                    break
                a = (a | (size - 1)) + 1
                if a == 0:
                    break
        where, code = c.fault_address, c.fault_code
        machine_leave(self.machine, c)
        if r < 0:
            _raise_fault(r, where, code)

    def pin(self, addr, n, write=False, *, cpu=0):
        """pin_user_pages_fast(): hold the pages of [addr, addr + n) as a driver does that hands them to a device.

        Returns a :class:`pykmm_ext.pin.Pin`: frame numbers, the device's reads and writes, ``unpin()``; it is a context
        manager. With `write` the pages are made writable first, as the device will write them. OSError: EFAULT (a
        page that cannot be had so), ENOMEM. All of the range is pinned, or nothing.
        """
        cdef unsigned long a = as_ulong(addr, "addr"), count = as_ulong(n, "n")
        cdef bint w = bool(write)
        cdef Cpu *c = _mm_enter(self, cpu)
        try:
            pins_reap(self.machine, self.machine.m, c)
            return pin_pages(self.machine, c, self.mm, a, count, w)
        finally:
            machine_leave(self.machine, c)

    # -- life --

    def fork(self, *, cpu=0):
        """A copy-on-write copy. MemoryError when the machine is full."""
        cdef int err = 0
        cdef mm_struct *mm
        cdef MmStruct result
        cdef Cpu *c = _mm_enter(self, cpu)
        try:
            with nogil:
                mm = dup_mm(c, self.mm, &err)
            if mm == NULL:
                raise_alloc(err, "a forked address space")
            result = wrap_mm(self.machine, mm)
            machine_reap(self.machine, c)
            pins_reap(self.machine, self.machine.m, c)
        finally:
            machine_leave(self.machine, c)
        self.machine._mm_created(result)
        return result

    def exit(self, *, cpu=0):
        """The address space goes away; any later use raises ValueError."""
        cdef Cpu *c = _mm_enter(self, cpu)
        if self.exited:
            machine_leave(self.machine, c)
            raise ValueError("this address space has exited")
        self.exited = True
        with nogil:
            end_mm(self.machine.m, c, self.mm)
        machine_leave(self.machine, c)

    # -- inspection --

    def find_vma(self, addr, *, cpu=0):
        """The first mapping that ends above `addr`, or None."""
        cdef unsigned long a = as_ulong(addr, "addr")
        cdef vma_copy v
        cdef vm_area_struct *vma
        cdef Cpu *c = _mm_enter(self, cpu)
        try:
            with nogil:
                mmap_read_lock(c, self.mm)
                vma = find_vma(c, self.mm, a)
                if vma != NULL:
                    copy_vma_facts(c, vma, &v)
                mmap_read_unlock(c, self.mm)
            if vma == NULL:
                return None
            try:
                return make_vma(&v, self.mm.arch.page_shift)
            finally:
                if v.f != NULL:
                    with nogil:
                        fput(c, v.f)
        finally:
            machine_leave(self.machine, c)

    @property
    def vmas(self):
        """Every mapping, by address."""
        return _vmas(self, 0)

    def proc_maps(self):
        """The text of /proc/PID/maps."""
        from pykmm_ext.mm import task_mmu
        return task_mmu.maps(self)

    def smaps(self):
        """The text of /proc/PID/smaps."""
        from pykmm_ext.mm import task_mmu
        return task_mmu.smaps(self)

    def pagemap(self, addr, npages):
        """One 64-bit word per page as /proc/PID/pagemap has them: bit 63 present, 61 file page, 56 mapped once only, 55
        soft-dirty, bits 0-54 the frame number."""
        cdef unsigned long a = as_ulong(addr, "addr"), n = as_ulong(npages, "npages")
        from pykmm_ext.mm import task_mmu
        return task_mmu.pagemap(self, a, n)

    @property
    def pgd(self):
        """Physical address of the root page table."""
        cdef Cpu *c = _mm_enter(self, 0)
        result = self.mm.pgd
        machine_leave(self.machine, c)
        return result

    def walk(self, addr, *, cpu=0):
        """What the hardware walker reads, root first: (level, physical address of the table, index, raw entry).

        The entry is the number that a processor of the arch reads, whatever its byte order.
        """
        cdef unsigned long a = as_ulong(addr, "addr")
        cdef unsigned long paddrs[8]
        cdef unsigned long raw[8]
        cdef u32 index[8]
        cdef int levels, i
        cdef Cpu *c = _mm_enter(self, cpu)
        with nogil:
            mmap_read_lock(c, self.mm)
            levels = walk_page_table(c, self.mm, a, paddrs, index, raw)
            mmap_read_unlock(c, self.mm)
            if self.mm.arch.big_endian:
                for i in range(levels):
                    raw[i] = be64_to_cpu(raw[i])
        top = self.mm.arch.levels - 1
        machine_leave(self.machine, c)
        return [(top - i, paddrs[i], index[i], raw[i]) for i in range(levels)]

    @property
    def stats(self):
        """Sizes in pages: total_vm, locked_vm, data_vm, exec_vm, stack_vm, anon_rss, file_rss; and map_count."""
        cdef u32 i
        cdef long anon, filed
        cdef Cpu *other
        cdef Cpu *c = _mm_enter(self, 0)
        anon, filed = self.mm.rss_stat[MM_ANONPAGES], self.mm.rss_stat[MM_FILEPAGES]
        for i in range(self.machine.m.nr_cpus):
            other = self.machine.m.cpus[i]
            if other.rss_mm == self.mm:
                anon += other.rss_stat[MM_ANONPAGES]
                filed += other.rss_stat[MM_FILEPAGES]
        result = {
            "map_count": self.mm.map_count, "total_vm": self.mm.total_vm, "locked_vm": self.mm.locked_vm,
            "data_vm": self.mm.data_vm, "exec_vm": self.mm.exec_vm, "stack_vm": self.mm.stack_vm,
            "anon_rss": anon, "file_rss": filed, "nr_ptes": self.mm.nr_ptes,
        }
        machine_leave(self.machine, c)
        return result

    def __repr__(self):
        state = "exited" if self.exited else "machine closed" if self.machine.m == NULL else f"id {self.mm.id}"
        return f"<pykmm MmStruct, {state}>"
