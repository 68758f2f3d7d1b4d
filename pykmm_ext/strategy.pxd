# SPDX-License-Identifier: GPL-2.0-only
# The strategy C API: what a compiled fault strategy cimports. The table itself, with the context of
# each member, is struct strategy_ops in include/kmm/strategy.h.
#
# A compiled strategy fills a static strategy_ops, wraps it in a subclass of Strategy that sets
# self.ops (and self.priv), and registers it from a .py file. No cdef methods on Strategy: a vtable
# change would make stale plugins call the wrong function silently.
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, count_vm_event
from pykmm_ext.mm.mm_types cimport (
    mm_struct, strategy_ops, tree_write_begin, tree_write_end, vm_area_struct, vm_fault, vm_fault_t,
    vma_write_begin, vma_write_end,
)

cdef class Strategy:
    cdef const strategy_ops *ops
    cdef void *priv
    cdef readonly str name
    cdef readonly str description

cdef const strategy_ops *strategy_get_ops(Strategy s) noexcept
# Context: GIL held. The same for a machine that is to be made: PluginError for a table that cannot work, or that was compiled
# against another pykmm. A table that ends before this pykmm's does comes back as a copy whose last members are NULL.
cdef const strategy_ops *strategy_check_ops(Strategy s) except NULL
# Context: GIL held; __cinit__ of a strategy with options. `known`: option -> its values, the default first, as Registry.add()
# gets them; `given`: what the constructor got. Index of the value of every known option; sets s.name, "name[option=value]".
# ValueError for an option or a value that is not known, with those that are.
cdef dict strategy_parse_options(Strategy s, str name, dict known, dict given)
