# SPDX-License-Identifier: GPL-2.0-only
# include/linux/timekeeping.h, of the host.
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from pykmm_ext.machine.cpu cimport u64

# Context: any. ktime_get_ns(): nanoseconds of the monotonic clock.
cdef inline u64 now_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <u64>ts.tv_sec * 1000000000 + <u64>ts.tv_nsec
