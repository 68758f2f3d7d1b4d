# SPDX-License-Identifier: GPL-2.0-only
# The Python face of an address space. Not part of the plugin C API.
from pykmm_ext.handle cimport MachineHandle
from pykmm_ext.mm.mm_types cimport mm_struct

cdef class MmStruct:
    cdef mm_struct *mm
    cdef readonly MachineHandle machine
    cdef bint exited
    cdef object __weakref__

# Context: nobody else uses `mm` yet. An address space that no exec has laid out gets a place for its heap.
cdef inline void mm_default_brk(mm_struct *mm) noexcept nogil:
    if mm.brk == 0:
        mm.start_brk = mm.brk = 0x555555800000

# Context: GIL held. The Python object of a new address space, whose reference it takes.
cdef MmStruct wrap_mm(MachineHandle machine, mm_struct *mm)
