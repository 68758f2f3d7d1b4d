# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for include/linux/mm_types.h: what a strategy in Python sees of an mm_struct and a vm_area_struct."""
cimport cython

from pykmm_ext.kernel cimport atomic
from pykmm_ext.kernel.rbtree cimport RB_EMPTY_NODE
from pykmm_ext.machine.cpu cimport Cpu, u64
from pykmm_ext.pykernel.call cimport call, over_handle, stale

cdef CpuHandle OVER = over_handle()


# ---- contexts: as READ_ONCE and WRITE_ONCE: any ----

# Context: as READ_ONCE().
cdef u64 do_read(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.READ_ONCE(cpu, <unsigned long *>p)


# Context: as READ_ONCE_32().
cdef u64 do_read_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.READ_ONCE_32(cpu, <u32 *>p)


# Context: as WRITE_ONCE().
cdef u64 do_write(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    atomic.WRITE_ONCE(cpu, <unsigned long *>p, a)
    return 0


# Context: as WRITE_ONCE_32().
cdef u64 do_write_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    atomic.WRITE_ONCE_32(cpu, <u32 *>p, <u32>a)
    return 0


# Context: as RB_EMPTY_NODE().
cdef u64 do_empty_node(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return RB_EMPTY_NODE(cpu, &(<vm_area_struct *>p).vm_rb)


# ---- the handles ----

@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class MmHandle:
    """An address space (struct mm_struct). Every attribute is read as the kernel would, with READ_ONCE()."""

    def __cinit__(self):
        self.on = OVER

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def id(self):
        """Number of the address space; for messages."""
        if self.on.cpu == NULL:
            stale()
        return self.mm.id

    @property
    def page_size(self):
        """Bytes of a page."""
        if self.on.cpu == NULL:
            stale()
        return <unsigned long>1 << self.mm.arch.page_shift

    @property
    def map_count(self):
        """How many VMAs there are."""
        return call(self.on, do_read_32, &self.mm.map_count)

    @property
    def mmap_seq(self):
        """A count for strategies whose mmap_write_lock() and _unlock() move it: odd = held."""
        return call(self.on, do_read, &self.mm.mmap_seq)

    @property
    def mm_lock_seq(self):
        """A number for strategies with per-VMA locks: a VMA whose vm_lock_seq equals it is write-locked."""
        return call(self.on, do_read, &self.mm.mm_lock_seq)

    @property
    def strategy_data(self):
        """The strategy's own word, 64 bits, 0 at first. Assignment is WRITE_ONCE()."""
        return call(self.on, do_read, &self.mm.strategy_data)

    @strategy_data.setter
    def strategy_data(self, unsigned long value):
        call(self.on, do_write, &self.mm.strategy_data, value)

    def at(self, str name not None):
        """The address of a word, for the functions that change one: strategy_data, mmap_seq, mm_lock_seq (64 bits),
        vma_writer_wait (32 bits)."""
        if name == "strategy_data":
            return field(self.on, name, &self.mm.strategy_data, 8)
        if name == "mmap_seq":
            return field(self.on, name, &self.mm.mmap_seq, 8)
        if name == "mm_lock_seq":
            return field(self.on, name, &self.mm.mm_lock_seq, 8)
        if name == "vma_writer_wait":
            return field(self.on, name, &self.mm.vma_writer_wait, 4)
        raise ValueError(f"no word {name!r} in an address space that a strategy may change; there are strategy_data, "
                         "mmap_seq, mm_lock_seq and vma_writer_wait")

    def __eq__(self, other):
        return isinstance(other, MmHandle) and (<MmHandle>other).mm == self.mm

    def __hash__(self):
        return hash(<size_t>self.mm)

    def __repr__(self):
        return "<MmHandle, over>" if self.on.cpu == NULL else f"<MmHandle of address space {self.mm.id}>"


cdef MmHandle mm_handle(CpuHandle on, mm_struct *mm):
    cdef MmHandle h = MmHandle.__new__(MmHandle)
    h.on = on
    h.mm = mm
    return h


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class VmaHandle:
    """A mapping (struct vm_area_struct). Every attribute is one READ_ONCE(): two of them may not belong together."""

    def __cinit__(self):
        self.on = OVER

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def vm_start(self):
        """First address."""
        return call(self.on, do_read, &self.vma.vm_start)

    @property
    def vm_end(self):
        """The address after the last."""
        return call(self.on, do_read, &self.vma.vm_end)

    @property
    def vm_flags(self):
        """``VM_`` flags."""
        return call(self.on, do_read, &self.vma.vm_flags)

    @property
    def vm_pgoff(self):
        """Page offset of vm_start in the file, or in the anonymous range."""
        return call(self.on, do_read, &self.vma.vm_pgoff)

    @property
    def vm_mm(self):
        """The address space that it belongs to."""
        return mm_handle(self.on, <mm_struct *><size_t>call(self.on, do_read, &self.vma.vm_mm))

    @property
    def anon_vma(self):
        """A number that is 0 while the VMA has no anon_vma."""
        return call(self.on, do_read, &self.vma.anon_vma)

    @property
    def vm_file(self):
        """A number that is 0 when no file is mapped."""
        return call(self.on, do_read, &self.vma.vm_file)

    @property
    def vm_sequence(self):
        """The sequence count, as spf_vma_write_begin() and _end() keep it: odd parts are writers (SPF_WRITER_MASK)."""
        return call(self.on, do_read_32, &self.vma.vm_sequence.sequence)

    @property
    def vm_refcnt(self):
        """For strategies whose VMAs are type-stable: VMA_ATTACHED while it is in a tree, and who is inside. at() to change
        it."""
        return call(self.on, do_read_32, &self.vma.vm_refcnt)

    @property
    def vm_lock_seq(self):
        """For strategies with per-VMA locks, as mm_lock_seq of the address space. Assignment is WRITE_ONCE()."""
        return call(self.on, do_read, &self.vma.vm_lock_seq)

    @vm_lock_seq.setter
    def vm_lock_seq(self, unsigned long value):
        call(self.on, do_write, &self.vma.vm_lock_seq, value)

    @property
    def detached(self):
        """It is not in the tree any more (RB_EMPTY_NODE)."""
        return bool(call(self.on, do_empty_node, self.vma))

    @property
    def strategy_data(self):
        """The strategy's own word, 64 bits, 0 in a new VMA. Assignment is WRITE_ONCE()."""
        return call(self.on, do_read, &self.vma.strategy_data)

    @strategy_data.setter
    def strategy_data(self, unsigned long value):
        call(self.on, do_write, &self.vma.strategy_data, value)

    def at(self, str name not None):
        """The address of a word, for the functions that change one: strategy_data, vm_lock_seq (64 bits), vm_refcnt
        (32 bits)."""
        if name == "strategy_data":
            return field(self.on, name, &self.vma.strategy_data, 8)
        if name == "vm_lock_seq":
            return field(self.on, name, &self.vma.vm_lock_seq, 8)
        if name == "vm_refcnt":
            return field(self.on, name, &self.vma.vm_refcnt, 4)
        raise ValueError(f"no word {name!r} in a VMA that a strategy may change; there are strategy_data, vm_lock_seq and "
                         "vm_refcnt")

    def __eq__(self, other):
        return isinstance(other, VmaHandle) and (<VmaHandle>other).vma == self.vma

    def __hash__(self):
        return hash(<size_t>self.vma)

    def __repr__(self):
        return "<VmaHandle, over>" if self.on.cpu == NULL else "<VmaHandle>"


cdef VmaHandle vma_handle(CpuHandle on, vm_area_struct *vma):
    cdef VmaHandle h = VmaHandle.__new__(VmaHandle)
    h.on = on
    h.vma = vma
    h.freed = 0
    return h


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class FieldHandle:
    """A word of a VMA or an address space: what ``vma.at("vm_refcnt")`` returns. ``value`` is READ_ONCE() and
    WRITE_ONCE()."""

    def __cinit__(self):
        self.on = OVER

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def value(self):
        """What is in it."""
        return call(self.on, do_read if self.word.width == 8 else do_read_32, self.word.p)

    @value.setter
    def value(self, unsigned long value):
        fits(self.word, value)
        call(self.on, do_write if self.word.width == 8 else do_write_32, self.word.p, value)

    def __repr__(self):
        return "<FieldHandle, over>" if self.on.cpu == NULL else f"<FieldHandle {self.name}>"


cdef int fits(field_word word, unsigned long value) except -1:
    if word.width == 4 and value >> 32:
        raise OverflowError(f"{value:#x} is too large for a word of 32 bits")
    return 0


cdef FieldHandle field(CpuHandle on, str name, void *p, u32 width):
    cdef FieldHandle h
    if on.cpu == NULL:
        stale()
    h = FieldHandle.__new__(FieldHandle)
    h.on = on
    h.word.p = p
    h.word.width = width
    h.name = name
    return h
