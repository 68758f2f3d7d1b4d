# SPDX-License-Identifier: GPL-2.0-only
# A strategy written in Python. Not part of the plugin C API: for the modules that run machines.
from pykmm_ext.mm.mm_types cimport machine, strategy_ops
from pykmm_ext.strategy cimport Strategy

cdef class PythonStrategy(Strategy):
    cdef strategy_ops table
    cdef const char *names[33]          # of counters, NULL-terminated
    cdef list methods                   # by member; None = the class does not define it
    cdef list texts                     # what `names` and table.name point into
    cdef dict counter_index             # name: index into Cpu.strategy_count

# Context: GIL held; nobody runs on the machine. What its Cpus held is forgotten: their memory is put back to an earlier
# state.
cdef void python_strategy_reset(machine *m) noexcept
