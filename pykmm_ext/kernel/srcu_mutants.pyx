# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (as srcu.pyx, whose text this is)
"""kernel/rcu/srcutree.c with parts missing, for mutation tests: srcu.pyx once more, with KMM_KEEP() at work."""
from pykmm_ext.kernel.srcu cimport rcu_segcblist, srcu_data, srcu_struct
from pykmm_ext.machine.cpu cimport rcu_head

cdef extern from *:
    """
    #define KMM_MUTANTS
    #include "kmm/mutant.h"
    """
    int kmm_mutant

include "srcu.pyx"


cdef void srcu_mutant(srcu_ops *ops, int mutant) noexcept:
    global kmm_mutant
    kmm_mutant = mutant
    ops.synchronize_srcu = synchronize_srcu
    ops.srcu_barrier = srcu_barrier
