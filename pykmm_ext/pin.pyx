# SPDX-License-Identifier: GPL-2.0-only
"""Pinned pages as Python objects (no kernel file): what a driver keeps of pin_user_pages_fast(), with the device's reads
and writes, which know frames and no page tables."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EFAULT
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from pykmm_ext.arch cimport arch_get_ops
from pykmm_ext.handle cimport as_bytes, as_ulong, machine_enter, machine_leave, raise_errno
from pykmm_ext.machine.cpu cimport u8
from pykmm_ext.mm.gup cimport get_user_pages_fast, unpin_user_pages
from pykmm_ext.mm.mm_types cimport FOLL_PIN, FOLL_WRITE, page, page_to_pfn, pfn_to_page


cdef int release_pins(machine *m, Cpu *c, tuple pfns, bint dirty) except -1:
    """Context: `c` owned, GIL held."""
    cdef page *pg
    cdef unsigned long pfn
    for number in pfns:
        pfn = number
        pg = pfn_to_page(m, pfn)
        with nogil:
            unpin_user_pages(c, &pg, 1, FOLL_PIN, dirty)
    return 0


cdef int pins_reap(MachineHandle handle, machine *m, Cpu *c) except -1:
    while handle.orphan_pins:
        pfns, dirty = handle.orphan_pins.pop()
        release_pins(m, c, pfns, dirty)
    return 0


cdef Pin pin_pages(MachineHandle handle, Cpu *c, mm_struct *mm, unsigned long addr, unsigned long length, bint write):
    cdef unsigned long size = <unsigned long>1 << mm.arch.page_shift
    cdef unsigned long n, i
    cdef page **pages
    cdef long got
    cdef Pin result
    if addr >= mm.task_size or length > mm.task_size - addr:
        raise_errno(-EFAULT)
    n = ((addr & (size - 1)) + length + size - 1) >> mm.arch.page_shift
    pages = <page **>malloc((n + 1) * sizeof(page *))
    if pages == NULL:
        raise MemoryError()
    try:
        with nogil:
            got = get_user_pages_fast(c, mm, addr, n, FOLL_PIN | (FOLL_WRITE if write else 0), pages)
            if 0 <= got < <long>n:
                unpin_user_pages(c, pages, got, FOLL_PIN, False)
                got = -EFAULT
        if got < 0:
            raise_errno(got)
        result = Pin.__new__(Pin)
        result.machine = handle
        result.addr = addr
        result.length = length
        result.write_access = write
        result.pfns = tuple([page_to_pfn(mm.machine, pages[i]) for i in range(n)])
        result.held = True
        handle.live_pins[<size_t><void *>result] = (result.pfns, result.write_access)
        return result
    finally:
        free(pages)


cdef int pin_check(Pin self, unsigned long offset, unsigned long n) except -1:
    """ValueError unless the pin is held and the bytes are its own. Context: GIL held."""
    if not self.held:
        raise ValueError("this pin was given up")
    if offset > self.length or n > self.length - offset:
        raise ValueError(f"bytes {offset} to {offset + n} of a pin of {self.length}")
    return 0


cdef int pin_transfer(Pin self, unsigned long offset, u8 *data, unsigned long n, bint write, object cpu) except -1:
    """The device reads or writes. Context: GIL held, no Cpu owned."""
    cdef Cpu *c = machine_enter(self.machine, cpu)
    cdef unsigned long size = <unsigned long>1 << arch_get_ops(self.machine.arch_object).page_shift
    cdef unsigned long at = (self.addr & (size - 1)) + offset, part, pfn
    cdef u8 *frame
    try:
        pin_check(self, offset, n)
        while n:
            part = min(n, size - (at & (size - 1)))
            pfn = self.pfns[at // size]
            frame = self.machine.m.mem_base + pfn * size + (at & (size - 1))
            if write:
                memcpy(frame, data, part)
            else:
                memcpy(data, frame, part)
            data += part
            at += part
            n -= part
    finally:
        machine_leave(self.machine, c)
    return 0


@cython.no_gc_clear
cdef class Pin:
    """Pages that somebody holds by FOLL_PIN; made by :meth:`MmStruct.pin`. A context manager, which gives them up.

    :ivar addr: where the pin begins, in the address space; :ivar length: bytes
    :ivar pfns: the frame numbers of its pages; :ivar write_access: pinned for writing
    """

    def __init__(self):
        raise TypeError("pins are made by MmStruct.pin()")

    def __dealloc__(self):
        if self.held and self.machine is not None and self.machine.m != NULL:
            self.machine.live_pins.pop(<size_t><void *>self, None)
            self.machine.orphan_pins.append((self.pfns, self.write_access))

    def read(self, offset=0, n=None, *, cpu=0):
        """`n` bytes from `offset` on (None: to the end), as a device reads them."""
        cdef unsigned long o = as_ulong(offset, "offset"), count
        pin_check(self, o, 0)
        count = self.length - o if n is None else as_ulong(n, "n")
        pin_check(self, o, count)
        result = PyBytes_FromStringAndSize(NULL, count)
        pin_transfer(self, o, <u8 *>PyBytes_AS_STRING(result), count, False, cpu)
        return result

    def write(self, data, offset=0, *, cpu=0):
        """Write `data` at `offset`, as a device writes. ValueError for a pin for reading."""
        cdef const u8[::1] view = as_bytes(data, "data")
        if not self.write_access:
            raise ValueError("this pin is for reading")
        pin_transfer(self, as_ulong(offset, "offset"), <u8 *>&view[0] if view.shape[0] else NULL, view.shape[0], True, cpu)

    def unpin(self, *, cpu=0):
        """Give the pages up; a second time does nothing."""
        cdef Cpu *c
        if not self.held:
            return
        c = machine_enter(self.machine, cpu)
        try:
            if self.held:
                self.held = False
                self.machine.live_pins.pop(<size_t><void *>self, None)
                release_pins(self.machine.m, c, self.pfns, self.write_access)
        finally:
            machine_leave(self.machine, c)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.machine.m != NULL:
            self.unpin()

    def __repr__(self):
        state = "" if self.held else ", given up"
        return f"<pykmm Pin of {len(self.pfns)} pages at {self.addr:#x}{state}>"
