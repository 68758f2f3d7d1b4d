# SPDX-License-Identifier: GPL-2.0-only
# Compiled functions that may stand in a strategy's class body. Not part of the plugin C API.
from pykmm_ext.machine.cpu cimport u32

# A compiled function, to be called, or to stand in the class body in place of a method.
cdef class KernelFunction:
    cdef void *pointer
    cdef u32 signature
    cdef readonly str name
    cdef readonly str member    # of strategy_ops that it can be, or ""
