# SPDX-License-Identifier: GPL-2.0-only
# Pinned pages as Python objects. Not part of the plugin C API.
from pykmm_ext.handle cimport MachineHandle
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport machine, mm_struct

cdef class Pin:
    cdef readonly MachineHandle machine
    cdef readonly unsigned long addr, length
    cdef readonly bint write_access
    cdef readonly tuple pfns
    cdef bint held

# Context: GIL held (released meanwhile), `c` owned and cpu->active_mm == mm. OSError where not every page can be pinned.
cdef Pin pin_pages(MachineHandle handle, Cpu *c, mm_struct *mm, unsigned long addr, unsigned long length, bint write)
# Context: `c` owned, GIL held.
cdef int release_pins(machine *m, Cpu *c, tuple pfns, bint dirty) except -1
# Gives the pins of dead objects up. Context: `c` owned, machine open, GIL held.
cdef int pins_reap(MachineHandle handle, machine *m, Cpu *c) except -1
