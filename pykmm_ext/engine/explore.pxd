# SPDX-License-Identifier: GPL-2.0-only
# Python functions as a program of the check engine.
from pykmm_ext.engine.check cimport Program
from pykmm_ext.kernel.cpuset cimport CpuSet
from pykmm_ext.machine.cpu cimport u64

cdef class PythonProgram(Program):
    cdef readonly CpuSet cpus
    cdef object build           # build(program): the program of one execution, given to `functions` and `final`
    cdef public list functions  # of this execution, by vCPU: called with a CpuRef
    cdef public object final    # called at its end, or None; returns the outcome
    cdef dict numbers           # outcome: its number
    cdef list outcomes          # by number
    cdef list refs              # CpuRef by vCPU
    cdef list lines
    cdef u64 last               # number of the last outcome
