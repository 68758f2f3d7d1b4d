# SPDX-License-Identifier: GPL-2.0-only
# Physical memory: an arena of frames that is reserved, not committed, and its struct pages;
# building and tearing down a whole machine.
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport arch_ops, machine, strategy_ops

# A machine with nr_cpus Cpus and `bytes` of memory (rounded down to frames), or NULL with *err = -errno.
cdef machine *machine_create(u32 nr_cpus, u64 bytes, const arch_ops *arch,
                             const strategy_ops *strategy, void *strategy_priv, int *err) noexcept nogil
# The same, all of it in one region that machine_snapshot() copies (machine/snapshot); at most 64 CPUs.
cdef machine *machine_create_checked(u32 nr_cpus, u64 bytes, const arch_ops *arch, const strategy_ops *strategy,
                                     void *strategy_priv, int *err) noexcept nogil
# Context: process, may sleep, GIL not held; no Cpu runs. Takes every Cpu off its mm and waits for deferred work.
cdef void machine_quiesce(machine *m) noexcept nogil
# What is alive now. Context: as machine_quiesce.
cdef void machine_count(machine *m, machine_leaks *found) noexcept nogil
# Every mm and file must be gone. Frees all; fills leaks (may be NULL) with what was still alive.
cdef struct machine_leaks:
    unsigned long mms, vmas, anon_vmas, avcs, files, policies, frames
cdef void machine_destroy(machine *m, machine_leaks *leaks) noexcept nogil
# Back at least `frames` free frames with host memory now, so that no host fault is timed.
cdef void machine_commit(machine *m, unsigned long frames) noexcept nogil
