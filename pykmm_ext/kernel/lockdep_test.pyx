# SPDX-License-Identifier: GPL-2.0-only
"""lib/locking-selftest.c: lockdep driven call by call, and beneath the real mm on an engine that explores nothing.

``Lockdep`` is the graph alone. ``Traced`` puts it under a Machine: the Machine's CPUs get an engine that performs every
access at once, on the calling thread, and tells lockdep of every lock and event. One CPU at a time.
"""
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort

from pykmm_ext.binding cimport Machine
from pykmm_ext.kernel.atomic cimport READ_ONCE
from pykmm_ext.kernel.lockdep cimport (
    lockdep, lockdep_acquire, lockdep_assert_held, lockdep_class, lockdep_context, lockdep_create, lockdep_destroy,
    lockdep_downgrade, lockdep_exit_check, lockdep_ipi_wait, lockdep_irqs_on, lockdep_kind, lockdep_might_sleep,
    lockdep_mode, lockdep_nested, lockdep_rcu_held, lockdep_release, lockdep_release_counted, lockdep_report, lockdep_reset,
    lockdep_reset_held, lockdep_srcu_held, lockdep_sync,
)
from pykmm_ext.kernel.lockdep_events cimport (
    KMM_DOWN_READ, KMM_DOWN_READ_TRYLOCK, KMM_DOWN_WRITE, KMM_DOWN_WRITE_TRYLOCK, KMM_DOWNGRADE_WRITE, KMM_SPIN_LOCK,
    KMM_SPIN_TRYLOCK, KMM_SPIN_UNLOCK, KMM_UP_READ, KMM_UP_WRITE, kmm_lock_op,
)
from pykmm_ext.kernel.lockdep_report cimport (
    graph_dict, merge_graph, report_dict, violation_kind, violation_message,
)
from pykmm_ext.kernel.lockdep_report import format_report
from pykmm_ext.kernel.lockdep_watch cimport lockdep_watch, lockdep_watch_event, lockdep_watch_init, lockdep_watch_lock
from pykmm_ext.kernel.rwsem cimport rw_semaphore
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport KMM_EV_IRQ_ENTER, KMM_EV_IRQ_EXIT, Cpu, engine_ops, kmm_event, kmm_pred, u8, u16, u32, u64
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr
from pykmm_ext.mm.vma cimport find_vma_srcu
from pykmm_ext.mm_binding cimport MmStruct

KINDS = ("spinlock", "rwsem", "seqcount", "irq", "rcu", "srcu")
MODES = ("write", "read", "recursive")


cdef class Lockdep:
    """A lock graph.

    :param cpus: how many CPUs, from 1.
    :param max_nodes: classes and subclasses that fit; 0 = the usual limit. Likewise max_edges and max_held.
    """
    cdef lockdep *ld
    cdef dict names
    cdef u32 nr_cpus

    def __cinit__(self, u32 cpus=2, u32 max_nodes=0, u32 max_edges=0, u32 max_held=0):
        self.names = {}
        self.nr_cpus = cpus
        self.ld = lockdep_create(cpus)
        if self.ld == NULL:
            raise MemoryError()
        if max_nodes:
            self.ld.max_nodes = min(max_nodes, self.ld.max_nodes)
        if max_edges:
            self.ld.max_edges = min(max_edges, self.ld.max_edges)
        if max_held:
            self.ld.max_held = min(max_held, self.ld.max_held)

    def __dealloc__(self):
        lockdep_destroy(self.ld)

    cdef const char *keep(self, object name) except? NULL:
        if name is None:
            return NULL
        cdef bytes kept = self.names.setdefault(name, name.encode())
        return kept

    cdef lockdep_context context(self, u32 cpu, bint irqs_off, bint in_irq, object where) except *:
        cdef lockdep_context ctx
        if cpu >= self.nr_cpus:
            raise IndexError(cpu)
        ctx.cpu = cpu
        ctx.irqs_off = irqs_off
        ctx.in_irq = in_irq
        ctx.where = self.keep(where)
        return ctx

    def lock_class(self, str name, str kind="spinlock", u32 flags=0):
        """Register a class; its number, or -1."""
        return lockdep_class(self.ld, self.keep(name), <lockdep_kind><int>KINDS.index(kind), flags)

    def acquire(self, u32 cpu, size_t address, int cls, u32 subclass=0, str mode="write", bint trylock=False,
                bint irqs_off=False, bint in_irq=False, where=None):
        """Take a lock; the report or None. So it is with the following."""
        cdef lockdep_context ctx = self.context(cpu, irqs_off, in_irq, where)
        return report_dict(lockdep_acquire(self.ld, &ctx, <const void *>address, cls, subclass,
                                           <lockdep_mode><int>MODES.index(mode), trylock))

    def release(self, u32 cpu, size_t address, int counted=-1):
        """Release it; `counted`: its class, if that counts its writers."""
        cdef lockdep_context ctx = self.context(cpu, False, False, None)
        if counted >= 0:
            return report_dict(lockdep_release_counted(self.ld, &ctx, <const void *>address, counted))
        return report_dict(lockdep_release(self.ld, &ctx, <const void *>address))

    def downgrade(self, u32 cpu, size_t address):
        """A writer goes on as a reader."""
        cdef lockdep_context ctx = self.context(cpu, False, False, None)
        return report_dict(lockdep_downgrade(self.ld, &ctx, <const void *>address))

    def nested(self, u32 cpu, size_t address, u32 subclass):
        """The next acquire of `address` has that subclass."""
        lockdep_nested(self.ld, cpu, <const void *>address, subclass)

    def sync(self, u32 cpu, size_t address, int cls, str mode="write", where=None):
        """Wait for the holders of a class."""
        cdef lockdep_context ctx = self.context(cpu, False, False, where)
        return report_dict(lockdep_sync(self.ld, &ctx, <const void *>address, cls, <lockdep_mode><int>MODES.index(mode)))

    def ipi_wait(self, u32 cpu, bint irqs_off=False, bint in_irq=False, where=None):
        """Wait for other CPUs' interrupts."""
        cdef lockdep_context ctx = self.context(cpu, irqs_off, in_irq, where)
        return report_dict(lockdep_ipi_wait(self.ld, &ctx, b"smp_call_function_many"))

    def irqs_on(self, u32 cpu, where=None):
        """IRQs have been enabled."""
        cdef lockdep_context ctx = self.context(cpu, False, False, where)
        return report_dict(lockdep_irqs_on(self.ld, &ctx))

    def might_sleep(self, u32 cpu, bint irqs_off=False, bint in_irq=False, where=None):
        """Something may sleep."""
        cdef lockdep_context ctx = self.context(cpu, irqs_off, in_irq, where)
        return report_dict(lockdep_might_sleep(self.ld, &ctx, b"something"))

    def assert_held(self, u32 cpu, size_t address, str mode="read"):
        """The lock is held, for writing if so asked."""
        cdef lockdep_context ctx = self.context(cpu, False, False, None)
        return report_dict(lockdep_assert_held(self.ld, &ctx, <const void *>address, <lockdep_mode><int>MODES.index(mode)))

    def rcu_held(self, u32 cpu):
        """An RCU read section is held."""
        cdef lockdep_context ctx = self.context(cpu, False, False, None)
        return report_dict(lockdep_rcu_held(self.ld, &ctx, b"something"))

    def srcu_held(self, u32 cpu, size_t address):
        """A section of that domain is held."""
        cdef lockdep_context ctx = self.context(cpu, False, False, None)
        return report_dict(lockdep_srcu_held(self.ld, &ctx, <const void *>address))

    def exit_check(self, u32 cpu):
        """Nothing is held."""
        cdef lockdep_context ctx = self.context(cpu, False, False, None)
        return report_dict(lockdep_exit_check(self.ld, &ctx))

    def reset_held(self):
        """A new execution."""
        lockdep_reset_held(self.ld)

    def reset(self):
        """Forget everything."""
        lockdep_reset(self.ld)

    @property
    def enabled(self):
        """False once a table was full."""
        return bool(self.ld.enabled)

    @property
    def searched(self):
        """How many sequences of locks were looked at."""
        return self.ld.nr_chains

    def graph(self):
        """The graph as a dict."""
        return graph_dict(self.ld)

    def merge(self, graph):
        """Add another's graph; the reports."""
        return merge_graph(self.ld, graph)

    def bench(self, unsigned long n, u32 depth=4):
        """Take and release `depth` locks n times, as an exploration would."""
        cdef lockdep_context ctx = self.context(0, False, False, "bench")
        cdef unsigned long _i
        cdef size_t j
        cdef const lockdep_report *r = NULL
        cdef int cls[8]
        for j in range(8):
            cls[j] = self.lock_class(f"bench{j}", "rwsem")
        if depth > 8:
            raise ValueError(depth)
        with nogil:
            for _i in range(n):
                for j in range(depth):
                    r = lockdep_acquire(self.ld, &ctx, <const void *>(j + 1), cls[j], 0, <lockdep_mode>0, False)
                for j in range(depth):
                    lockdep_release(self.ld, &ctx, <const void *>(depth - j))
        return report_dict(r)


def lock_ptl_irqs_off(MmStruct mm not None, unsigned long address):
    """What a fault that spins does: take the lock of the page table that maps `address` with IRQs off, and give it back."""
    cdef Cpu *c = mm.machine.m.cpus[0]
    cdef spinlock_t *ptl = pte_lockptr(c, mm.mm, READ_ONCE(c, mm_find_pmd(c, mm.mm, address)))
    local_irq_disable(c)
    spin_lock(c, ptl)
    spin_unlock(c, ptl)
    local_irq_enable(c)


def find_vma_srcu_unlocked(MmStruct mm not None, unsigned long address):
    """find_vma_srcu() outside of a read section."""
    return find_vma_srcu(mm.machine.m.cpus[0], mm.mm, address) != NULL


def one_line(Lockdep graph not None, size_t room=1024):
    """(kind, text) of the last report, as an engine gets them."""
    cdef char buf[1024]
    violation_message(&graph.ld.report, buf, min(room, sizeof(buf)))
    return (<bytes>violation_kind(&graph.ld.report)).decode(), (<bytes>buf).decode()


# ---- beneath the mm -------------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    #include "kmm/engine.h"
    /* Nothing is reordered: a dependency is nothing special. */
    static u64 kmm_direct_load_dep(Cpu *cpu, const volatile void *p, unsigned width, enum kmm_order order, u32 dep)
    { return cpu->engine->load(cpu, p, width, order); }
    static u32 kmm_direct_last_load(Cpu *cpu) { return 0; }
    static void kmm_direct_init(struct engine_ops *ops, void *load, void *store, void *rmw, void *fence, void *await,
                                void *lock, void *irq, void *event, void *ipi_send, void *ipi_wait)
    {
        ops->size = sizeof(*ops);
        ops->load = load; ops->store = store; ops->rmw = rmw; ops->fence = fence;
        ops->await = await; ops->lock = lock; ops->irq = irq; ops->event = event;
        ops->ipi_send = ipi_send; ops->ipi_wait = ipi_wait;
        ops->load_dep = kmm_direct_load_dep; ops->last_load = kmm_direct_last_load;
    }
    """
    void kmm_direct_init(engine_ops *ops, void *load, void *store, void *rmw, void *fence, void *await_, void *lock, void *irq,
                         void *event, void *ipi_send, void *ipi_wait)

cdef enum:
    MAX_REPORTS = 64
    KMM_XCHG = 0
    KMM_CMPXCHG = 1
    KMM_ADD = 2
    KMM_AND = 3
    KMM_IRQ_DISABLE = 0
    KMM_IRQ_ENABLE = 1

cdef struct direct:
    lockdep_watch watch
    u32 nr_reports
    lockdep_report reports[MAX_REPORTS]

cdef engine_ops direct_ops


cdef void found(direct *d, const lockdep_report *r) noexcept nogil:
    if r != NULL and d.nr_reports < MAX_REPORTS:
        d.reports[d.nr_reports] = r[0]
        d.nr_reports += 1


cdef u64 direct_load(Cpu *cpu, const void *p, unsigned width, int order) noexcept nogil:
    if width == 8:
        return (<const u64 *>p)[0]
    if width == 4:
        return (<const u32 *>p)[0]
    return (<const u16 *>p)[0] if width == 2 else (<const u8 *>p)[0]


cdef void direct_store(Cpu *cpu, void *p, unsigned width, u64 v, int order) noexcept nogil:
    if width == 8:
        (<u64 *>p)[0] = v
    elif width == 4:
        (<u32 *>p)[0] = <u32>v
    elif width == 2:
        (<u16 *>p)[0] = <u16>v
    else:
        (<u8 *>p)[0] = <u8>v


cdef u64 direct_rmw(Cpu *cpu, void *p, unsigned width, int op, u64 a, u64 b, int order) noexcept nogil:
    cdef u64 old = direct_load(cpu, p, width, 0)
    if op == KMM_XCHG:
        direct_store(cpu, p, width, a, 0)
    elif op == KMM_CMPXCHG:
        if old == a:
            direct_store(cpu, p, width, b, 0)
    elif op == KMM_ADD:
        direct_store(cpu, p, width, old + a, 0)
    elif op == KMM_AND:
        direct_store(cpu, p, width, old & a, 0)
    else:
        direct_store(cpu, p, width, old | a, 0)
    return old


cdef void direct_fence(Cpu *cpu, int kind) noexcept nogil:
    pass


cdef void stuck(const char *what) noexcept nogil:
    fprintf(stderr, "lockdep_test: one CPU waits for itself: %s\n", what)
    abort()


cdef u64 direct_await(Cpu *cpu, const void *p, unsigned width, kmm_pred pred, u64 arg) noexcept nogil:
    cdef u64 v = direct_load(cpu, p, width, 0)
    if not pred(v, arg):
        stuck(b"await")
    return v


cdef int direct_lock(Cpu *cpu, void *lock, int op) noexcept nogil:
    cdef direct *d = <direct *>cpu.engine_priv
    cdef spinlock_t *spin = <spinlock_t *>lock
    cdef rw_semaphore *sem = <rw_semaphore *>lock
    cdef int what = 1
    cdef bint free = True
    if op == KMM_SPIN_LOCK or op == KMM_SPIN_TRYLOCK:
        free = spin.slock == 0
        spin.slock = 1
    elif op == KMM_SPIN_UNLOCK:
        spin.slock = 0
    elif op == KMM_DOWN_READ or op == KMM_DOWN_READ_TRYLOCK:
        free = not sem.count & 1
        sem.count += 256 if free else 0
    elif op == KMM_DOWN_WRITE or op == KMM_DOWN_WRITE_TRYLOCK:
        free = sem.count == 0
        sem.count = 1 if free else sem.count
    elif op == KMM_UP_READ:
        sem.count -= 256
    elif op == KMM_UP_WRITE:
        sem.count = 0
    elif op == KMM_DOWNGRADE_WRITE:
        sem.count = 256
    if not free:
        if op != KMM_SPIN_TRYLOCK and op != KMM_DOWN_READ_TRYLOCK and op != KMM_DOWN_WRITE_TRYLOCK:
            stuck(b"lock")
        return 0
    if op == KMM_SPIN_UNLOCK or op == KMM_UP_READ or op == KMM_UP_WRITE or op == KMM_DOWNGRADE_WRITE:
        what = 2
    found(d, lockdep_watch_lock(&d.watch, cpu, lock, <kmm_lock_op>op, what, b"mm"))
    if op == KMM_DOWNGRADE_WRITE:
        found(d, lockdep_watch_lock(&d.watch, cpu, lock, KMM_DOWN_READ_TRYLOCK, 1, b"mm"))
    return 1


cdef void direct_irq(Cpu *cpu, int op) noexcept nogil:
    if op == KMM_IRQ_DISABLE:
        cpu.irq_disabled += 1
    elif op == KMM_IRQ_ENABLE:
        cpu.irq_disabled -= 1


cdef void direct_event(Cpu *cpu, kmm_event ev, const void *obj, u64 size) noexcept nogil:
    cdef direct *d = <direct *>cpu.engine_priv
    found(d, lockdep_watch_event(&d.watch, cpu, ev, obj, size, b"mm"))


cdef void direct_ipi_send(Cpu *cpu, Cpu *target, void (*func)(Cpu *, void *) noexcept nogil, void *info) noexcept nogil:
    direct_event(target, KMM_EV_IRQ_ENTER, NULL, 0)
    func(target, info)
    direct_event(target, KMM_EV_IRQ_EXIT, NULL, 0)


cdef void direct_ipi_wait(Cpu *cpu) noexcept nogil:
    pass


kmm_direct_init(&direct_ops, <void *>direct_load, <void *>direct_store, <void *>direct_rmw, <void *>direct_fence,
                <void *>direct_await, <void *>direct_lock, <void *>direct_irq, <void *>direct_event,
                <void *>direct_ipi_send, <void *>direct_ipi_wait)


cdef class Traced:
    """A context manager: while it is active, lockdep sees what the Machine does. Use it from one thread.

    :param machine: an open Machine.
    """
    cdef Machine owner
    cdef Lockdep lockdep
    cdef direct d

    def __cinit__(self, Machine machine not None):
        self.owner = machine
        self.lockdep = Lockdep(machine.m.nr_cpus)
        self.d.nr_reports = 0
        lockdep_watch_init(&self.d.watch, self.lockdep.ld, machine.m)

    def __enter__(self):
        cdef u32 i
        for i in range(self.owner.m.nr_cpus):
            self.owner.m.cpus[i].engine_priv = &self.d
            self.owner.m.cpus[i].engine = &direct_ops
        return self

    def __exit__(self, *error):
        cdef u32 i
        for i in range(self.owner.m.nr_cpus):
            self.owner.m.cpus[i].engine = NULL
            self.owner.m.cpus[i].engine_priv = NULL
        return False

    @property
    def reports(self):
        """What was reported so far, as text."""
        cdef u32 i
        return [format_report(report_dict(&self.d.reports[i])) for i in range(self.d.nr_reports)]

    @property
    def unknown(self):
        """Operations on locks that no class is known for."""
        return self.d.watch.unknown

    @property
    def held(self):
        """How many locks the CPUs hold."""
        cdef u32 i
        return sum(self.lockdep.ld.cpus[i].depth for i in range(self.owner.m.nr_cpus))

    def edges(self):
        """The order of classes that was seen: a set of (held, taken)."""
        graph = self.lockdep.graph()
        name = [graph["classes"][cls][0] + (f"/{subclass}" if subclass else "") for cls, subclass, _ in graph["nodes"]]
        return {(name[edge["held"]], name[edge["taken"]]) for edge in graph["edges"]}
