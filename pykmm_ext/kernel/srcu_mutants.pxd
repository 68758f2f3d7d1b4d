# SPDX-License-Identifier: GPL-2.0-only
# kernel/rcu/srcutree.c with parts missing: mutation tests only.
from pykmm_ext.kernel.srcu cimport srcu_struct
from pykmm_ext.machine.cpu cimport Cpu

cdef struct srcu_ops:
    void (*synchronize_srcu)(Cpu *cpu, srcu_struct *ssp) noexcept nogil
    void (*srcu_barrier)(Cpu *cpu, srcu_struct *ssp) noexcept nogil

# The functions of srcu.pyx, compiled again. `mutant` as in KMM_KEEP(); 0 = intact; one at a time in a process.
cdef void srcu_mutant(srcu_ops *ops, int mutant) noexcept
