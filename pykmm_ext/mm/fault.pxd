# SPDX-License-Identifier: GPL-2.0-only
# arch/x86/mm/fault.c: what a fault owes before and after the generic code; shared by the strategies.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport mm_struct, vm_fault_t

# The classic path of do_user_addr_fault(): lookup, stack growth, access check and handle_mm_fault() under
# mmap_sem. Context: process, IRQs on, no locks held; may sleep. As strategy_ops.handle_fault.
cdef vm_fault_t handle_fault_mmap_sem(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil
