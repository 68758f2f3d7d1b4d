# SPDX-License-Identifier: GPL-2.0-only
# lib/random32.c, for the self-tests.
from pykmm_ext.machine.cpu cimport u64

# Context: any; the state is the caller's, and not 0. The next number; the same ones for the same seed.
cdef inline u64 xorshift(u64 *state) noexcept nogil:
    cdef u64 x = state[0]
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    state[0] = x
    return x
