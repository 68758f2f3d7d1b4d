# SPDX-License-Identifier: GPL-2.0-only
# cython: language_level=3
"""A third party's arch: the table of x86 with some members of its own."""
import pykmm

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.mm.mm_types cimport arch_ops
from pykmm_ext.mm.mmu_gather cimport tlb_remove_tables_rcu


cdef class X86Low(Arch):
    """x86 whose page tables are freed by RCU, and whose mappings begin below 4 GiB."""

    cdef arch_ops table

    def __cinit__(self):
        cdef Arch x86 = pykmm.get_plugin_manager().arches.make("x86")
        self.table = arch_get_ops(x86)[0]
        self.table.name = b"x86-low"
        self.table.mmap_base = 0xffff0000
        self.table.rcu_table_free = 1
        self.table.tlb_remove_tables = tlb_remove_tables_rcu
        self.ops = &self.table
        self.name = "x86-low"
        self.description = "x86 with page tables freed by RCU and mappings below 4 GiB"
