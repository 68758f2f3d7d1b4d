# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (as rwsem.pyx, whose text this is)
"""kernel/locking/rwsem.c with parts missing, for mutation tests: rwsem.pyx once more, with KMM_KEEP() at work."""
from pykmm_ext.kernel.rwsem cimport READ_FAILED_MASK, READER_BIAS, rw_semaphore, rwsem_waiter

cdef extern from *:
    """
    #define KMM_MUTANTS
    #include "kmm/mutant.h"
    """
    int kmm_mutant

include "rwsem.pyx"


cdef void rwsem_mutant(rwsem_ops *ops, int mutant) noexcept:
    global kmm_mutant
    kmm_mutant = mutant
    ops.down_read = down_read
    ops.down_read_trylock = down_read_trylock
    ops.up_read = up_read
    ops.down_write = down_write
    ops.down_write_trylock = down_write_trylock
    ops.up_write = up_write
    ops.downgrade_write = downgrade_write
