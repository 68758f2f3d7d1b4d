# SPDX-License-Identifier: GPL-2.0-only
# The Python face of the machine. Not part of the plugin C API.
from pykmm_ext.handle cimport MachineHandle
from pykmm_ext.strategy cimport Strategy

cdef class Machine(MachineHandle):
    cdef readonly Strategy strategy_object
    cdef long exports               # buffers handed out
    cdef Py_ssize_t buffer_shape[1]
    cdef object __weakref__
