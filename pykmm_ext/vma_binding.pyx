# SPDX-License-Identifier: GPL-2.0-only
"""The Python face of a mapping (no kernel file): Vma, and the copy of a vm_area_struct that it is made from."""
import os

from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.filemap cimport get_file
from pykmm_ext.mm.mm_types cimport VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, vm_area_struct
from pykmm_ext.mm.task_mmu cimport vma_label


cdef tuple _vma_key(Vma v):
    return (v.start, v.end, v.vm_flags, v.offset, v.dev_major, v.dev_minor, v.ino, v.name)


cdef class Vma:
    """One mapping as it was when it was asked for (a copy: later changes do not show).

    :ivar start: first address; :ivar end: the address after the last
    :ivar prot: PROT_ bits as in the stdlib mmap module; :ivar shared: MAP_SHARED
    :ivar vm_flags: the kernel's VM_ flags; :ivar offset: bytes into the file, or 0
    :ivar name: the file's name or a label like "[heap]", or ""
    """

    def __init__(self):
        raise TypeError("Vma objects are made by MmStruct.find_vma() and MmStruct.vmas")

    @property
    def flags(self):
        """MAP_SHARED (1) or MAP_PRIVATE (2), and MAP_ANONYMOUS (0x20) without a file."""
        return (1 if self.shared else 2) | (0x20 if not self.ino and not self.name.startswith("/") else 0)

    @property
    def file(self):
        """The name of the mapped file, or None."""
        return self.name if self.name and not self.name.startswith("[") else None

    @property
    def perms(self):
        """As in /proc/PID/maps: "rw-p"."""
        return ("r" if self.prot & 1 else "-") + ("w" if self.prot & 2 else "-") + ("x" if self.prot & 4 else "-") + (
            "s" if self.shared else "p")

    def __eq__(self, other):
        if not isinstance(other, Vma):
            return NotImplemented
        return _vma_key(self) == _vma_key(other)

    def __hash__(self):
        return hash(_vma_key(self))

    def __repr__(self):
        return f"<Vma {self.start:x}-{self.end:x} {self.perms} {self.offset:08x} {self.name}>".replace(" >", ">")


cdef void copy_vma_facts(Cpu *c, vm_area_struct *vma, vma_copy *to) noexcept nogil:
    cdef const char *name = NULL
    cdef int i = 0
    to.start = vma.vm_start
    to.end = vma.vm_end
    to.flags = vma.vm_flags
    to.pgoff = vma.vm_pgoff
    to.f = vma.vm_file
    if to.f != NULL:
        get_file(c, to.f)
    else:
        name = vma_label(vma)
    if name != NULL:
        while i < 63 and name[i] != 0:
            to.name[i] = name[i]
            i += 1
    to.name[i] = 0


cdef Vma make_vma(vma_copy *v, u32 page_shift):
    cdef Vma result = Vma.__new__(Vma)
    result.start = v.start
    result.end = v.end
    result.vm_flags = v.flags
    result.prot = (1 if v.flags & VM_READ else 0) | (2 if v.flags & VM_WRITE else 0) | (4 if v.flags & VM_EXEC else 0)
    result.shared = (v.flags & VM_SHARED) != 0
    if v.f != NULL:
        result.offset = v.pgoff << page_shift
        result.ino = v.f.ino
        result.dev_major = v.f.dev_major
        result.dev_minor = v.f.dev_minor
        result.name = os.fsdecode(<bytes>v.f.name)
    else:
        result.name = os.fsdecode(<bytes>v.name)
    return result
