# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for the direct calls of a kernel patched with one fault design: the object that carries a strategy's table.

`Strategy` holds data only. It gets no ``cdef`` methods, ever: a changed vtable would make a plugin that was
compiled against an older pykmm call the wrong function without any warning.
"""


cdef class Strategy:
    """A fault strategy: who may resolve a page fault under which locks, and what VMA writers owe for it.

    A compiled strategy is a subclass whose ``__cinit__`` sets ``ops`` (a static ``strategy_ops`` table, see
    ``kmm/strategy.h``), ``name`` and ``description``. One object may serve any number of machines.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def counter_names(self) -> tuple[str, ...]:
        """Names of the strategy's counters, in the order of ``Cpu.strategy_count``.

        The first three are attempts, successes and faults retried under ``mmap_sem``; the rest are reasons.
        """
        names = []
        cdef int i = 0
        if self.ops == NULL or self.ops.counter_names == NULL:
            return ()
        while self.ops.counter_names[i] != NULL:
            names.append((<bytes>self.ops.counter_names[i]).decode())
            i += 1
        return tuple(names)


# Context: any; the GIL is not needed but s must be alive. NULL for a Strategy that has set no table.
cdef const strategy_ops *strategy_get_ops(Strategy s) noexcept:
    return s.ops
