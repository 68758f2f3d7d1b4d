# SPDX-License-Identifier: GPL-2.0-only
# kernel/locking/lockdep.c: the lock graph of a virtual engine. Native never calls it.
#
# One struct lockdep belongs to one engine, which calls it from one thread. The classes and their graph last over all
# executions of a scenario; what a CPU holds is forgotten by lockdep_reset_held() between executions. A call returns NULL,
# or the report of a violation: it lies in the struct lockdep and is good until the next report. Names and places are
# const char * that outlive the struct.
#
# Context of everything here: any; does not sleep, takes no lock, allocates nothing (but lockdep_create()).
from pykmm_ext.machine.cpu cimport u8, u16, u32, u64

cdef enum:
    LOCKDEP_MAX_CLASSES = 128
    LOCKDEP_SUBCLASSES = 8
    LOCKDEP_MAX_NODES = 256      # (class, subclass) pairs in use
    LOCKDEP_MAX_EDGES = 4096
    LOCKDEP_MAX_HELD = 48        # locks that one CPU holds at a time
    LOCKDEP_MAX_STEPS = 32       # edges in a reported cycle
    LOCKDEP_CHAINS = 16384       # a power of two

# What a class is; decides whether its holder may sleep.
cdef enum lockdep_kind:
    LOCKDEP_SPIN                 # holder may not sleep
    LOCKDEP_RWSEM
    LOCKDEP_SEQCOUNT             # write section; may not sleep, unless LOCKDEP_SLEEPABLE
    LOCKDEP_IRQ                  # IRQs off, as something that IPI senders wait for
    LOCKDEP_RCU                  # may not sleep
    LOCKDEP_SRCU

cdef enum:                       # flags of a class
    LOCKDEP_SLEEPABLE = 1
    LOCKDEP_COUNTED = 2          # a sequence that counts its writers: any number of them are inside at once

cdef enum lockdep_mode:
    LOCKDEP_EXCLUSIVE = 0
    LOCKDEP_SHARED = 1           # fair readers: one behind a waiting writer waits too (rwsem)
    LOCKDEP_RECURSIVE = 2        # readers that wait for writers inside only (RCU, sequence readers)

cdef enum lockdep_violation:
    LOCKDEP_OK
    LOCKDEP_CYCLE                # the order of two or more classes
    LOCKDEP_SELF                 # a class within itself
    LOCKDEP_IRQ_INVERSION        # a handler and what it interrupts
    LOCKDEP_SLEEP                # may sleep where it must not
    LOCKDEP_IPI_WAIT             # waits for other CPUs with IRQs off
    LOCKDEP_UNLOCK               # releases what it does not hold
    LOCKDEP_NOT_HELD             # lockdep_assert_held()
    LOCKDEP_RCU_NOT_HELD
    LOCKDEP_SRCU_NOT_HELD
    LOCKDEP_EXIT                 # still held at the end of an operation
    LOCKDEP_CAPACITY             # a table is full: lockdep has switched itself off

# One edge of a cycle: while `held` was held (taken at held_where), `taken` was asked for at taken_where.
cdef struct lockdep_step:
    const char *held
    const char *taken
    const char *held_where
    const char *taken_where
    u32 held_subclass
    u32 taken_subclass
    u32 cpu                      # where, and in which execution, the edge was first seen
    u8 held_shared               # held by a reader
    u8 taken_recursive           # asked for by a recursive reader
    u8 irq                       # no edge of the graph: `taken` is taken in a handler that may interrupt `held`
    u64 execution

cdef struct lockdep_report_lock:
    const char *name
    const char *where
    const void *addr
    u32 subclass
    u32 mode
    u32 trylock
    u32 in_irq

cdef struct lockdep_report:
    lockdep_violation violation
    const char *message
    const char *where            # the place given by the caller
    const char *name             # class that was asked for, or NULL
    const void *addr
    u32 subclass
    u32 mode
    u32 cpu
    u64 execution
    u32 irqs_off
    u32 in_irq
    u32 nr_steps
    u32 truncated                # the cycle has more edges than fit in steps
    lockdep_step steps[LOCKDEP_MAX_STEPS]
    u32 nr_held                  # what the CPU holds, oldest first
    lockdep_report_lock held[LOCKDEP_MAX_HELD]

# Where and when something was first seen.
cdef struct lockdep_place:
    const char *where
    u32 cpu
    u64 execution

cdef struct lockdep_class_t:
    const char *name
    u32 kind
    u32 flags

cdef struct lockdep_node:
    u16 cls
    u16 subclass
    u32 usage                    # IRQ usage bits, each with its place
    u32 edges                    # head of the list of edges from here; 0 = none
    lockdep_place place[4]

cdef struct lockdep_edge:
    u16 held
    u16 taken
    u8 shared
    u8 recursive
    u8 reported
    u32 next
    const char *held_where
    lockdep_place place

cdef struct lockdep_held:
    const void *addr
    const char *where
    u64 key                      # names the sequence of locks up to and including this one
    u16 node
    u8 mode
    u8 flags
    u32 refs                     # LOCKDEP_COUNTED: sections inside

cdef struct lockdep_cpu:
    u32 depth
    u32 atomic                   # held locks whose holder may not sleep
    u32 nr_rcu
    u32 nested_subclass
    const void *nested_addr      # lockdep_nested(): whose next acquire has that subclass
    lockdep_held held[LOCKDEP_MAX_HELD]

cdef struct lockdep:
    u32 enabled                  # 0 after LOCKDEP_CAPACITY
    u32 nr_cpus
    u32 nr_classes, nr_nodes, nr_edges, nr_irq_nodes, nr_chains
    u32 max_nodes, max_edges, max_held    # lower for tests of the limits
    u64 execution                # calls of lockdep_reset_held(): the number of the execution under way
    lockdep_cpu *cpus
    lockdep_class_t classes[LOCKDEP_MAX_CLASSES]
    u16 node_of[LOCKDEP_MAX_CLASSES * LOCKDEP_SUBCLASSES]    # number + 1
    lockdep_node nodes[LOCKDEP_MAX_NODES]
    lockdep_edge edges[LOCKDEP_MAX_EDGES]                    # [0] is not used
    u64 chains[LOCKDEP_CHAINS]   # keys of sequences that were found good
    # The search: a node is visited in up to two states (reached by a recursive reader only, or not).
    u8 seen[2 * LOCKDEP_MAX_NODES]
    u16 queue[2 * LOCKDEP_MAX_NODES]
    u16 from_state[2 * LOCKDEP_MAX_NODES]
    u32 from_edge[2 * LOCKDEP_MAX_NODES]
    lockdep_report report

# Where and in what state a CPU is.
cdef struct lockdep_context:
    u32 cpu
    bint irqs_off
    bint in_irq                  # in an IPI handler
    const char *where

# NULL = no memory.
cdef lockdep *lockdep_create(u32 nr_cpus) noexcept nogil
cdef void lockdep_destroy(lockdep *ld) noexcept nogil
# Forgets classes, graph and held locks.
cdef void lockdep_reset(lockdep *ld) noexcept nogil
# A new execution begins: nobody holds anything; the graph stays.
cdef void lockdep_reset_held(lockdep *ld) noexcept nogil

# The number of the class of that name, registered at the first call, or -1 when the table is full.
cdef int lockdep_class(lockdep *ld, const char *name, lockdep_kind kind, u32 flags) noexcept nogil

# To be called before a lock is waited for, or after a trylock has succeeded. `cls` < 0: class table full.
cdef const lockdep_report *lockdep_acquire(lockdep *ld, const lockdep_context *ctx, const void *addr, int cls, u32 subclass,
                                           lockdep_mode mode, bint trylock) noexcept nogil
cdef const lockdep_report *lockdep_release(lockdep *ld, const lockdep_context *ctx, const void *addr) noexcept nogil
# A section of a sequence that counts its writers (LOCKDEP_COUNTED). Sections of one class are held together.
cdef const lockdep_report *lockdep_release_counted(lockdep *ld, const lockdep_context *ctx, const void *addr,
                                                   int cls) noexcept nogil
# A writer goes on as a reader.
cdef const lockdep_report *lockdep_downgrade(lockdep *ld, const lockdep_context *ctx, const void *addr) noexcept nogil
# The CPU's next acquire of `addr` is of that subclass.
cdef void lockdep_nested(lockdep *ld, u32 cpu, const void *addr, u32 subclass) noexcept nogil
# Waits for whoever holds the class, and takes nothing: a grace period, a reader of a sequence.
cdef const lockdep_report *lockdep_sync(lockdep *ld, const lockdep_context *ctx, const void *addr, int cls,
                                        lockdep_mode mode) noexcept nogil
# Waits for IPI handlers on other CPUs, hence for their IRQ-off sections and handlers.
cdef const lockdep_report *lockdep_ipi_wait(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil
# IRQs have been enabled: what is held can be interrupted from now on.
cdef const lockdep_report *lockdep_irqs_on(lockdep *ld, const lockdep_context *ctx) noexcept nogil

cdef const lockdep_report *lockdep_might_sleep(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil
# `mode` LOCKDEP_EXCLUSIVE: a writer; else anyone.
cdef const lockdep_report *lockdep_assert_held(lockdep *ld, const lockdep_context *ctx, const void *addr,
                                               lockdep_mode mode) noexcept nogil
cdef const lockdep_report *lockdep_rcu_held(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil
cdef const lockdep_report *lockdep_srcu_held(lockdep *ld, const lockdep_context *ctx, const void *ssp) noexcept nogil
# An operation has ended on this CPU: it holds nothing.
cdef const lockdep_report *lockdep_exit_check(lockdep *ld, const lockdep_context *ctx) noexcept nogil
