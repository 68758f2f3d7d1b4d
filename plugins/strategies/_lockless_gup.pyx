# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""mm/gup.c, get_user_pages_fast(), with the walk monitoring that was proposed in 2019: pins without mmap_sem.

Faults take mmap_sem, as in the baseline. A pin walks the page tables with IRQs off (and in an RCU read section where
tables are freed by RCU or ``serialize=rcu`` says so), takes references and checks what it has read: mm/gup has the
argument, and who runs against whom.

Options
    monitor    What tells writers whether anybody walks: ``none`` (they always wait), ``atomic`` (one counter per mm),
               ``percpu`` (one word per CPU). Writers are whoever removes page tables or changes the kind of a PMD.
    serialize  How they wait: as the ``arch`` does; by ``ipi`` and then at once; by ``rcu``. ``none``: not at all, a bug
               (race R18) unless the pmd is looked at again and tables are not freed.
    order      ``full``: barriers around the counter. ``none``: without them (race R17).
    recheck    ``both``: the pmd and the entry are read again after the reference was taken. ``pte``: the entry alone; then
               everything hangs on serialisation (race R20).
    fork       ``seq``: write_protect_seq is looked at. ``none``: a pin and a fork may miss each other.
    walk       ``protected``, or ``open``: neither IRQs off nor RCU, so that nobody can wait for it (race R18).
"""
from libc.errno cimport ENOMEM

from pykmm_ext.machine.cpu cimport Cpu, count_strategy, likely, u32
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.gup cimport GUP_IRQS_ON, GUP_NO_FORK_SEQ, GUP_NO_PMD_RECHECK, lockless_pages_from_mm
from pykmm_ext.mm.lockless_walk cimport WALK_SERIALIZED, WALK_SKIPPED, lockless_walk_alloc, lockless_walk_free
from pykmm_ext.mm.mm_types cimport (
    KMM_SERIALIZE_ARCH, KMM_WALK_ATOMIC, KMM_WALK_PERCPU, VM_FAULT_ERROR, machine_of, mm_struct, page, strategy_ops,
    vm_fault_t,
)
from pykmm_ext.strategy cimport Strategy, strategy_parse_options

# Cpu.strategy_count: faults, then pins; WALK_SERIALIZED and WALK_SKIPPED follow.
cdef enum:
    ATTEMPTS
    SUCCESSES
    RETRIED
    ERRORS
    GUP_ATTEMPTS
    GUP_FAST        # every page without a lock
    GUP_PARTIAL     # some
    GUP_SLOW        # none

cdef const char *counter_names[11]
counter_names[:] = [
    "attempts", "successes", "retried", "errors", "gup_attempts", "gup_fast", "gup_partial", "gup_slow",
    "walks_serialized", "walks_skipped", NULL,
]
if (WALK_SERIALIZED, WALK_SKIPPED) != (GUP_SLOW + 1, GUP_SLOW + 2):
    raise ImportError("the counters of mm/lockless_walk have moved")

# Const after the strategy was made.
cdef struct gup_options:
    u32 monitor             # index in OPTIONS
    u32 serialize           # KMM_SERIALIZE_*
    u32 unordered
    u32 study               # GUP_*

cdef strategy_ops ops


# Context: any; const while the machine lives.
cdef inline const gup_options *options_of(Cpu *cpu) noexcept nogil:
    return <const gup_options *>machine_of(cpu).strategy_priv


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t fault
    count_strategy(cpu, ATTEMPTS)
    fault = handle_fault_mmap_sem(cpu, mm, address, flags)
    count_strategy(cpu, ERRORS if fault & VM_FAULT_ERROR else SUCCESSES)
    return fault


# Context: as strategy_ops.gup_fast.
cdef long gup_fast(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                   page **pages) noexcept nogil:
    cdef long n
    count_strategy(cpu, GUP_ATTEMPTS)
    n = lockless_pages_from_mm(cpu, mm, start, nr_pages, gup_flags, pages, options_of(cpu).study)
    count_strategy(cpu, GUP_FAST if likely(n == <long>nr_pages) else GUP_PARTIAL if n else GUP_SLOW)
    return n


# Context: as strategy_ops.mm_init.
cdef int mm_init(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef const gup_options *o = options_of(cpu)
    if o.monitor == 0 and o.serialize == <u32>KMM_SERIALIZE_ARCH:
        return 0
    mm.lockless_walk = lockless_walk_alloc(cpu, mm.machine, o.monitor != 0,
                                           KMM_WALK_PERCPU if o.monitor == 2 else KMM_WALK_ATOMIC, o.serialize,
                                           o.unordered)
    return 0 if mm.lockless_walk != NULL else -ENOMEM


# Context: as strategy_ops.mm_exit.
cdef void mm_exit(Cpu *cpu, mm_struct *mm) noexcept nogil:
    lockless_walk_free(cpu, mm)


ops.size = sizeof(strategy_ops)
ops.name = "lockless_gup"
ops.counter_names = counter_names
ops.handle_fault = handle_fault
ops.gup_fast = gup_fast
ops.mm_init = mm_init
ops.mm_exit = mm_exit

OPTIONS = {
    "monitor": ("none", "atomic", "percpu"),
    "serialize": ("arch", "ipi", "rcu", "none"),
    "order": ("full", "none"),
    "recheck": ("both", "pte"),
    "fork": ("seq", "none"),
    "walk": ("protected", "open"),
}


cdef class LocklessGup(Strategy):
    """Pins by lockless page-table walks; faults under ``mmap_sem``.

    :param options: names and values of :data:`OPTIONS`. ValueError for others, with the known ones.
    """

    cdef gup_options o

    def __cinit__(self, **options: str) -> None:
        cdef dict index = strategy_parse_options(self, "lockless_gup", OPTIONS, options)
        self.o.monitor = index["monitor"]
        self.o.serialize = index["serialize"]    # in the order of enum kmm_walk_serialize
        self.o.unordered = index["order"]
        self.o.study = ((GUP_NO_PMD_RECHECK if index["recheck"] else 0)
                        | (GUP_NO_FORK_SEQ if index["fork"] else 0) | (GUP_IRQS_ON if index["walk"] else 0))
        self.ops = &ops
        self.priv = &self.o
        self.description = "pins (get_user_pages_fast) without mmap_sem; faults under it"
