# SPDX-License-Identifier: GPL-2.0-only
# Copying a machine in a region back to how it was, and saying what lies at an address of it.
#
# Context of everything here: the engine's thread; no Cpu runs. The machine is of machine_create_checked().
from pykmm_ext.machine.cpu cimport u64
from pykmm_ext.mm.mm_types cimport machine

# Remember every byte in use, in place of what was remembered before. 0 or -ENOMEM (nothing is remembered then).
cdef int machine_snapshot(machine *m) noexcept nogil
# Everything as it was at machine_snapshot(), whatever was going on: what was allocated since is gone, locks are free,
# Cpu.engine is what it was. Takes microseconds. Allocates nothing and cannot fail.
cdef void machine_restore(machine *m) noexcept nogil
# True when every byte in use is as at machine_snapshot().
cdef bint machine_is_restored(machine *m) noexcept nogil
# Bytes that machine_restore() copies; 0 = no snapshot.
cdef size_t machine_snapshot_size(machine *m) noexcept nogil

# May the byte at addr be touched? KMM_SHADOW_* (machine/region). O(1); inline: region_state() of include/kmm/region.h.
cdef int machine_shadow_state(machine *m, const void *addr) noexcept nogil
# What addr lies in, and how far in: "vm_area_struct 0.3" (of Cpu 0, its third object), "page 7" (a struct page),
# "frame 7 (page table level 0 of mm 1)", "Cpu 1", "TLB 1", "machine", "vma_srcu"; with ", freed" where it was. Not of
# the machine: "?" and the address itself. The answer is overwritten by the fourth call from now. Not fast.
cdef const char *machine_object_name(machine *m, const void *addr, u64 *offset) noexcept nogil
# The member at that offset of a structure by the name machine_object_name() begins with ("vm_area_struct"): its kernel
# name, or NULL.
cdef const char *machine_member_name(const char *structure, u64 offset) noexcept nogil
