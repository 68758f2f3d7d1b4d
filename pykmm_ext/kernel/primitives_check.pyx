# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects on a vCPU: raw pointers only)
"""Programs for the check engine (no kernel file): the primitives of kernel/*.pyx at work, one scenario each.

===========  ===========================================================================================================
scenario     what must hold
===========  ===========================================================================================================
spinlock     increments under the lock are not lost; its own algorithm runs
seqlock      a reader that need not retry saw one writer's pair of words
rwsem        a reader never sees half of a write; writes are not lost; nobody is left asleep; a writer that waits is
             overtaken once: it gets in after a bounded number of steps; its own algorithm runs
rcu          an object is alive as long as a reader that found it is inside, and what the reader wrote is seen
             afterwards; synchronize_rcu() or call_rcu()
srcu         the same for SRCU
rbtree       a descent without locks ends, and knows every node that it meets
===========  ===========================================================================================================
"""
from libc.stdlib cimport free
from libc.string cimport memset

from pykmm_ext.engine.check cimport CHECK_ASSERTION, CHECK_BROKEN, CHECK_UAF, Program, check_fail, check_program
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_PTR, WRITE_ONCE, kmm_await, kmm_is_not_equal, smp_store_release,
)
from pykmm_ext.kernel.rbtree cimport (
    rb_erase, rb_insert_color, rb_link_node, rb_node, rb_replace_node, rb_root, validate_rb_tree,
)
from pykmm_ext.kernel.rcu cimport call_rcu, rcu_barrier, rcu_init, rcu_read_lock, rcu_read_unlock, synchronize_rcu
from pykmm_ext.kernel.rwsem cimport (
    down_read, down_read_trylock, down_write, down_write_trylock, downgrade_write, init_rwsem, rw_semaphore, up_read,
    up_write,
)
from pykmm_ext.kernel.rwsem_mutants cimport rwsem_mutant, rwsem_ops
from pykmm_ext.kernel.seqlock cimport read_seqbegin, read_seqretry, seqlock_init, seqlock_t, write_seqlock, write_sequnlock
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock, spinlock_t
from pykmm_ext.kernel.srcu cimport (
    call_srcu, init_srcu_struct_at, srcu_barrier, srcu_data, srcu_read_lock, srcu_read_unlock, srcu_struct,
    synchronize_srcu,
)
from pykmm_ext.kernel.srcu_mutants cimport srcu_mutant, srcu_ops
from pykmm_ext.machine.cpu cimport Cpu, rcu_head, u32
from pykmm_ext.mm.mm_types cimport KMM_QUIRK_EAGER_CALLBACKS, machine

cdef extern from *:
    """
    #include "kmm/atomic.h"
    #include "kmm/rbtree_types.h"
    /* A load through the pointer that the vCPU's last load returned: an address dependency. */
    static inline unsigned long load_through(Cpu *cpu, const unsigned long *p, u32 dep)
    { return cpu->engine ? cpu->engine->load_dep(cpu, p, 8, KMM_RELAXED, dep) : *(volatile const unsigned long *)p; }
    #include <stdlib.h>
    static inline u32 last_load(Cpu *cpu) { return cpu->engine ? cpu->engine->last_load(cpu) : 0; }
    /* How many steps the vCPU has taken. */
    static inline u32 steps_of(Cpu *cpu) { return cpu->engine ? cpu->engine->query(cpu, KMM_QUERY_SEQ) : 0; }
    struct tree_item { struct rb_node node; unsigned long key; };
    """
    unsigned long load_through(Cpu *cpu, const unsigned long *p, u32 dep) nogil
    u32 last_load(Cpu *cpu) nogil
    u32 steps_of(Cpu *cpu) nogil
    void *aligned_alloc(size_t alignment, size_t size) nogil
    cdef struct tree_item:
        rb_node node
        unsigned long key

cdef enum:
    CPUS = 4
    OBJECTS = 8
    SECTIONS = 4        # of one vCPU
    FLAG_HANDOFF = 4    # of rwsem.pyx
    # What a writer takes to get in: the fast path, one spin, queueing, two waits.
    BOUNDED_STEPS = 28

cdef enum scenario:
    SPINLOCK, SEQLOCK, RWSEM, RCU, SRCU, RBTREE

SCENARIOS = {"spinlock": SPINLOCK, "seqlock": SEQLOCK, "rwsem": RWSEM, "rcu": RCU, "srcu": SRCU, "rbtree": RBTREE}

cdef struct object_t:
    rcu_head head               # first: the callback gets it
    unsigned long alive
    unsigned long used          # by a reader, inside its section
    unsigned long seen_used     # by who freed it: not shared

cdef struct world:
    u32 what
    u32 nr_cpus
    bint eager                  # call_rcu() ends grace periods if it can
    bint large                  # a tree with six items, not four
    char roles[CPUS][SECTIONS + 1]
    Cpu cpus[CPUS]
    Cpu *cpu_of[CPUS]
    machine m
    spinlock_t lock
    seqlock_t seq
    rw_semaphore sem
    rwsem_ops rwsem             # the functions under test
    srcu_ops srcu_api
    srcu_struct srcu
    srcu_data sda[CPUS]
    unsigned long a, b, writes
    unsigned long came          # a reader is inside
    unsigned long got           # the writer "b" was
    unsigned long current       # index of the object that readers find
    object_t objects[OBJECTS]
    rb_root root
    tree_item items[OBJECTS]


# Context: any vCPU inside a writer's section. Two words that belong together.
cdef void write_pair(Cpu *cpu, world *w) noexcept nogil:
    cdef unsigned long n = READ_ONCE(cpu, &w.a) + 1
    WRITE_ONCE(cpu, &w.a, n)
    WRITE_ONCE(cpu, &w.b, n)


# Context: any vCPU inside a reader's section.
cdef void read_pair(Cpu *cpu, world *w) noexcept nogil:
    if READ_ONCE(cpu, &w.a) != READ_ONCE(cpu, &w.b):
        check_fail(cpu, CHECK_ASSERTION, b"a reader saw half of a write")


# Context: vCPU, no locks.
cdef void seqlock_reader(Cpu *cpu, world *w) noexcept nogil:
    cdef unsigned long a, b
    cdef u32 seq
    seq = read_seqbegin(cpu, &w.seq)
    a = READ_ONCE(cpu, &w.a)
    b = READ_ONCE(cpu, &w.b)
    # One attempt: a second one is the first one of another schedule.
    if not read_seqretry(cpu, &w.seq, seq) and a != b:
        check_fail(cpu, CHECK_ASSERTION, b"a reader saw half of a write")


# Context: vCPU, no locks.
cdef void rwsem_section(Cpu *cpu, world *w, char role) noexcept nogil:
    cdef u32 steps
    cdef bint handoff
    if role == b'r':
        w.rwsem.down_read(cpu, &w.sem)
        read_pair(cpu, w)
        w.rwsem.up_read(cpu, &w.sem)
    elif role == b'w':
        w.rwsem.down_write(cpu, &w.sem)
        write_pair(cpu, w)
        w.rwsem.up_write(cpu, &w.sem)
    elif role == b'd':
        w.rwsem.down_write(cpu, &w.sem)
        write_pair(cpu, w)
        w.rwsem.downgrade_write(cpu, &w.sem)
        read_pair(cpu, w)
        w.rwsem.up_read(cpu, &w.sem)
    elif role == b'D':
        w.rwsem.down_write(cpu, &w.sem)
        write_pair(cpu, w)
        w.rwsem.downgrade_write(cpu, &w.sem)
        # Queued or not, a reader is let in now.
        kmm_await(cpu, &w.came, kmm_is_not_equal, 0)
        w.rwsem.up_read(cpu, &w.sem)
    elif role == b'R':
        w.rwsem.down_read(cpu, &w.sem)
        WRITE_ONCE(cpu, &w.came, 1)
        w.rwsem.up_read(cpu, &w.sem)
    elif role == b'b':
        steps = steps_of(cpu)
        w.rwsem.down_write(cpu, &w.sem)
        if steps_of(cpu) - steps > BOUNDED_STEPS:
            check_fail(cpu, CHECK_ASSERTION, b"a writer that waits was overtaken again and again")
        WRITE_ONCE(cpu, &w.got, 1)
        w.rwsem.up_write(cpu, &w.sem)
    elif role == b'h':
        # The flag is there for the one writer "b", which waits from before this until it has got the lock.
        handoff = (READ_ONCE(cpu, &w.sem.count) & FLAG_HANDOFF) != 0
        w.rwsem.down_write(cpu, &w.sem)
        if handoff and not READ_ONCE(cpu, &w.got):
            check_fail(cpu, CHECK_ASSERTION, b"a writer took the lock that was to be handed to another")
        w.rwsem.up_write(cpu, &w.sem)
    elif role == b't' and w.rwsem.down_read_trylock(cpu, &w.sem):
        read_pair(cpu, w)
        w.rwsem.up_read(cpu, &w.sem)
    elif role == b'y':
        if w.rwsem.down_write_trylock(cpu, &w.sem):
            write_pair(cpu, w)
            w.rwsem.up_write(cpu, &w.sem)
        else:
            return
    if role == b'w' or role == b'd' or role == b'D' or role == b'y':
        w.writes += 1


# Context: vCPU inside a read section of RCU or SRCU, twice looking at what it found.
cdef void use_object(Cpu *cpu, world *w, bint marks) noexcept nogil:
    cdef unsigned long at = READ_ONCE(cpu, &w.current)
    cdef u32 dep = last_load(cpu)
    cdef u32 i
    for i in range(2):
        if not load_through(cpu, &w.objects[at].alive, dep):
            check_fail(cpu, CHECK_UAF, b"a reader's object was freed")
            return
        if i == 0 and marks:
            WRITE_ONCE(cpu, &w.objects[at].used, 1)


# Context: callback of call_rcu(), call_srcu(), or the updater itself.
cdef void free_object(Cpu *cpu, rcu_head *head) noexcept nogil:
    cdef object_t *o = <object_t *>head
    WRITE_ONCE(cpu, &o.alive, 0)
    o.seen_used = READ_ONCE(cpu, &o.used)
    if cpu.rcu_nesting:
        check_fail(cpu, CHECK_ASSERTION, b"a callback runs inside of a read section")


# Context: vCPU, no locks; one updater. Makes another object current and frees the old one.
cdef void update_object(Cpu *cpu, world *w, char role) noexcept nogil:
    cdef unsigned long old = w.current, new = old + 1
    WRITE_ONCE(cpu, &w.objects[new].alive, 1)
    smp_store_release(cpu, &w.current, new)     # pairs with the address dependency in use_object()
    if role == b'u':
        if w.what == RCU:
            synchronize_rcu(cpu)
        else:
            w.srcu_api.synchronize_srcu(cpu, &w.srcu)
        free_object(cpu, &w.objects[old].head)
        return
    if w.what == RCU:
        call_rcu(cpu, &w.objects[old].head, free_object)
        rcu_barrier(cpu)
    else:
        call_srcu(cpu, &w.srcu, &w.objects[old].head, free_object)
        w.srcu_api.srcu_barrier(cpu, &w.srcu)
    if READ_ONCE(cpu, &w.objects[old].alive):
        check_fail(cpu, CHECK_ASSERTION, b"the callback is not over when the wait for it is")


# Context: vCPU, no locks. Looks for a key without a lock: may miss it, must end.
cdef void descend(Cpu *cpu, world *w, unsigned long key) noexcept nogil:
    cdef rb_node *node = <rb_node *>READ_ONCE_PTR(cpu, &w.root.rb_node)
    cdef u32 dep, steps = 0
    cdef unsigned long found
    while node != NULL:
        dep = last_load(cpu)
        found = load_through(cpu, &(<tree_item *>node).key, dep)
        if found == 0:
            check_fail(cpu, CHECK_BROKEN, b"a descent met a node that was not filled in")
            return
        if found == key:
            return
        steps += 1
        if steps > OBJECTS:
            check_fail(cpu, CHECK_BROKEN, b"a descent does not end")
            return
        node = <rb_node *>load_through(cpu, <unsigned long *>(&node.rb_left if key < found else &node.rb_right), dep)


# Context: the one writer, or reset.
cdef void insert(Cpu *cpu, world *w, u32 item, unsigned long key) noexcept nogil:
    cdef rb_node **link = &w.root.rb_node
    cdef rb_node *parent = NULL
    WRITE_ONCE(cpu, &w.items[item].key, key)
    while link[0] != NULL:
        parent = link[0]
        # Through the primitives: the stores may still be in this vCPU's buffer.
        link = &parent.rb_left if key < READ_ONCE(cpu, &(<tree_item *>parent).key) else &parent.rb_right
    rb_link_node(cpu, &w.items[item].node, parent, link)
    rb_insert_color(cpu, &w.items[item].node, &w.root)


# Context: the one writer. Another item with the same key in place of one.
cdef void replace(Cpu *cpu, world *w, u32 victim, u32 item) noexcept nogil:
    WRITE_ONCE(cpu, &w.items[item].key, READ_ONCE(cpu, &w.items[victim].key))
    rb_replace_node(cpu, &w.items[victim].node, &w.items[item].node, &w.root)


# Context: a vCPU of the check engine; holds nothing on entry and on return. May sleep.
cdef void world_vcpu(void *priv, Cpu *cpu, u32 id) noexcept nogil:
    cdef world *w = <world *>priv
    cdef char *role = w.roles[id]
    cdef int idx
    while role[0]:
        if w.what == SPINLOCK:
            spin_lock(cpu, &w.lock)
            WRITE_ONCE(cpu, &w.a, READ_ONCE(cpu, &w.a) + 1)
            spin_unlock(cpu, &w.lock)
            w.writes += 1
        elif w.what == SEQLOCK and role[0] == b'w':
            write_seqlock(cpu, &w.seq)
            write_pair(cpu, w)
            write_sequnlock(cpu, &w.seq)
            w.writes += 1
        elif w.what == SEQLOCK:
            seqlock_reader(cpu, w)
        elif w.what == RWSEM:
            rwsem_section(cpu, w, role[0])
        elif w.what == RBTREE and role[0] == b'i':
            insert(cpu, w, 5, 50)       # rotates
        elif w.what == RBTREE and role[0] == b'x':
            replace(cpu, w, 1, 6)       # the root
        elif w.what == RBTREE and role[0] == b'l':
            replace(cpu, w, 3, 7)       # a leaf
        elif w.what == RBTREE and (role[0] == b'e' or role[0] == b'E'):
            rb_erase(cpu, &w.items[0].node, &w.root)
        elif w.what == RBTREE:
            descend(cpu, w, 50 if role[0] == b'n' else 35 if role[0] == b'v' else 25)
        elif role[0] == b'k':
            rcu_read_lock(cpu)
            call_rcu(cpu, &w.objects[OBJECTS - 1].head, free_object)
            rcu_read_unlock(cpu)
        elif role[0] == b's' and w.what == RCU:
            synchronize_rcu(cpu)
        elif role[0] == b's':
            w.srcu_api.synchronize_srcu(cpu, &w.srcu)
        elif role[0] != b'r' and role[0] != b'm':
            update_object(cpu, w, role[0])
        elif w.what == RCU:
            rcu_read_lock(cpu)
            use_object(cpu, w, role[0] == b'm')
            rcu_read_unlock(cpu)
        else:
            idx = srcu_read_lock(cpu, &w.srcu)
            use_object(cpu, w, role[0] == b'm')
            srcu_read_unlock(cpu, &w.srcu, idx)
        role += 1


# Context: no vCPU runs.
cdef int world_reset(void *priv) noexcept nogil:
    cdef world *w = <world *>priv
    cdef u32 i
    spin_lock_init(&w.lock)
    seqlock_init(&w.seq)
    init_rwsem(&w.sem)
    w.a = w.b = w.writes = w.current = w.came = w.got = 0
    w.m.quirks = KMM_QUIRK_EAGER_CALLBACKS if w.eager else 0
    memset(w.objects, 0, sizeof(w.objects))
    w.objects[0].alive = 1
    memset(w.items, 0, sizeof(w.items))
    w.root.rb_node = NULL
    for i in range(w.nr_cpus):
        w.cpus[i].rcu_nesting = 0
        w.cpus[i].rcu_gp_ctr = 0
        w.cpus[i].irq_disabled = 0
    rcu_init(&w.m)
    init_srcu_struct_at(&w.srcu, w.nr_cpus, w.sda)
    if w.what == RBTREE:
        w.cpus[0].engine = NULL
        for i in range(OBJECTS - 1):
            w.items[i].node.rb_left = w.items[i].node.rb_right = &w.items[OBJECTS - 1].node     # linking clears them
        for i in range(6 if w.large else 4):
            insert(&w.cpus[0], w, i, (i + 1) * 10 if i else 5)
    return 0


# Context: any; what it returns never changes.
cdef Cpu *world_cpu(void *priv, u32 id) noexcept nogil:
    return &(<world *>priv).cpus[id]


# Context: no vCPU runs.
cdef void world_finish(void *priv) noexcept nogil:
    cdef world *w = <world *>priv
    cdef Cpu *cpu = &w.cpus[0]
    cdef rb_node *where = NULL
    cdef u32 i
    if w.what <= RWSEM and w.a != w.writes:
        check_fail(cpu, CHECK_ASSERTION, b"a write was lost")
    if w.what == RWSEM and (w.sem.count or w.sem.first != NULL):
        check_fail(cpu, CHECK_ASSERTION, b"the semaphore is not free at the end")
    if w.what == RBTREE and validate_rb_tree(&w.root, &where) < 0:
        check_fail(cpu, CHECK_BROKEN, b"the tree is not a red-black tree")
    if w.what == RCU or w.what == SRCU:
        for i in range(<u32>w.current):
            if w.objects[i].alive:
                check_fail(cpu, CHECK_ASSERTION, b"an object that was replaced is not freed")
            elif w.objects[i].used != w.objects[i].seen_used:
                check_fail(cpu, CHECK_ASSERTION, b"who freed an object did not see what a reader wrote there")


cdef class Primitives(Program):
    """A scenario.

    :param scenario: a key of SCENARIOS
    :param roles: what each vCPU does, one letter after the other (at most 4 vCPUs, 4 letters each). spinlock: any letter.
        seqlock: "w"rite, "r"ead. rwsem: "r"ead, "w"rite, "d"owngrade, "D" downgrade and wait for an "R" that reads, "t"
        read if free, "y" write if free, "b" write, once in a program, after a bounded number of steps, "h" write, but
        not instead of a "b" that is to be handed the lock. rcu, srcu: "r"ead, "m" read and mark what was found,
        "u"pdate and wait, "c" update and call back, "e" the same, and every call tries to end a grace period, "k" (rcu)
        only calls, likewise, from inside of a read section, "s" wait for a grace period. rbtree: "i"nsert, "e"rase, "E" erase
        from a larger tree, whose sibling there is red, "x" replace the root, "l" a leaf, "r" look for an old key, "n" for
        the new one, "v" for one between
    :param open_locks: run the algorithms of spinlocks and semaphores instead of blocking primitives
    :param mutant: run the copy of rwsem or srcu that lacks this part, a number of KMM_KEEP() there; 0 = the copy, intact;
        -1 = the shipped code. One number at a time in a process: the last program's

    ValueError: an unknown scenario, too many roles.
    """
    cdef world *w

    def __cinit__(self, scenario, roles, *, bint open_locks=True, int mutant=-1):
        cdef u32 i, k
        cdef world *w
        if scenario not in SCENARIOS:
            raise ValueError(f"unknown scenario {scenario!r}; known: {', '.join(SCENARIOS)}")
        if not 1 <= len(roles) <= CPUS or max(map(len, roles)) > SECTIONS:
            raise ValueError(f"1 to {CPUS} vCPUs with at most {SECTIONS} sections each")
        self.w = w = <world *>aligned_alloc(128, (sizeof(world) + 127) & ~<size_t>127)
        if w == NULL:
            raise MemoryError()
        memset(w, 0, sizeof(world))
        w.what = SCENARIOS[scenario]
        w.nr_cpus = <u32>len(roles)
        for i in range(w.nr_cpus):
            w.cpu_of[i] = &w.cpus[i]
            w.cpus[i].id = i
            w.cpus[i].machine = &w.m
            for k in range(<u32>len(roles[i])):
                w.roles[i][k] = <char>ord(roles[i][k])
                w.large |= roles[i][k] == "E"
                w.eager |= roles[i][k] in "ek" and w.what >= RCU and w.what <= SRCU
        w.m.cpus = w.cpu_of
        w.m.nr_cpus = w.nr_cpus
        w.rwsem = rwsem_ops(down_read, down_read_trylock, up_read, down_write, down_write_trylock, up_write, downgrade_write)
        w.srcu_api = srcu_ops(synchronize_srcu, srcu_barrier)
        if mutant >= 0 and w.what == RWSEM:
            rwsem_mutant(&w.rwsem, mutant)
        elif mutant >= 0 and w.what == SRCU:
            srcu_mutant(&w.srcu_api, mutant)
        elif mutant >= 0:
            raise ValueError(f"there are no mutants of {scenario}")
        self.prog.size = sizeof(check_program)
        self.prog.name = b"primitives"
        self.prog.priv = w
        self.prog.nr_vcpus = w.nr_cpus
        self.prog.open_spinlocks = open_locks and w.what == SPINLOCK
        self.prog.open_rwsems = open_locks and w.what == RWSEM
        self.prog.reset = world_reset
        self.prog.cpu = world_cpu
        self.prog.vcpu = world_vcpu
        self.prog.finish = world_finish

    def __dealloc__(self):
        free(self.w)
