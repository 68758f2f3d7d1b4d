# SPDX-License-Identifier: GPL-2.0-only
"""arch/: the object that carries an arch backend's C table into Python. The porting checklist stands in arch.pxd."""
from pykmm_ext.mm.mm_types cimport KMM_MODEL_TSO


cdef class Arch:
    """A compiled arch backend: page-table geometry and entries, TLB flushing, table freeing, memory model.

    Made by a backend's factory; a subclass sets ``ops``, ``name`` and ``description`` in ``__cinit__``. Immutable:
    one object may serve any number of machines.

    :ivar name: what the backend calls itself
    :ivar description: one line for people
    """

    def __repr__(self) -> str:
        return f"<Arch {self.name}>"

    def geometry(self) -> dict[str, object]:
        """Page-table geometry and address limits, as ``struct arch_ops`` has them.

        Levels count from the leaves: index 0 is the PTE table. Addresses are in bytes.

        :raises RuntimeError: the subclass has set no table of functions
        """
        cdef const arch_ops *ops = self.ops
        if ops == NULL:
            raise RuntimeError(f"{type(self).__name__} has no arch_ops")
        return {
            "page_shift": ops.page_shift,
            "levels": ops.levels,
            "level_shift": tuple([ops.level_shift[i] for i in range(ops.levels)]),
            "level_bits": tuple([ops.level_bits[i] for i in range(ops.levels)]),
            "task_size": ops.task_size,
            "mmap_base": ops.mmap_base,
            "map_window": ops.map_window if ops.map_window else ops.task_size,
            "stack_top": ops.stack_top,
            "mmap_min_addr": ops.mmap_min_addr,
            "big_endian": bool(ops.big_endian),
            "rcu_table_free": bool(ops.rcu_table_free),
            "tlb_broadcast": bool(ops.tlb_broadcast),
        }

    @property
    def memory_model(self) -> str:
        """The memory model of the check engine that is this arch's: "tso", or "power" for a weak one.

        :raises RuntimeError: the subclass has set no table of functions
        """
        if self.ops == NULL:
            raise RuntimeError(f"{type(self).__name__} has no arch_ops")
        return "tso" if self.ops.memory_model == KMM_MODEL_TSO else "power"


# Context: GIL held. NULL where the subclass has set none.
cdef const arch_ops *arch_get_ops(Arch a) noexcept:
    return a.ops
