# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/smp.c: cross-CPU function calls, by IPIs that the sender may deliver itself.

On native a target in user code is an OS thread that cannot be interrupted. A CPU with IRQs on could
take an interrupt at any instruction, so the sender runs the handler in the target's place; with IRQs
off it waits. Hence a handler excludes the owner's IRQ-off sections only, touches nothing of the owner's
outside of them (counters that only handlers write are fine: ipi_lock protects them), and calls none
of the IRQ functions itself.

Why a handler never runs inside an IRQ-off section of its target:

- ipi_pending counts the calls that were announced and whose handler has not returned. A sender adds its
  own before smp_mb_heavy(), and it stays until ipi_lock's holder has run that call.
- owner:  irq_disabled = 1;  smp_mb_light();  ipi_pending? then out again, and wait for ipi_lock's holder.
- sender: ipi_pending += 1;  queue;  smp_mb_heavy();  take ipi_lock;  own call not done and !irq_disabled?
  then run the whole queue.
- The heavy barrier runs on the owner's CPU at one point of its program. A store of 1 before that point is
  visible to the sender afterwards, which reads 1 (or a later 0: IRQs were enabled again). A store of 1
  after that point is followed by a load of ipi_pending that sees the sender's count, because the count is
  not taken back before the sender's own call is done: the owner backs out.
- Under ipi_lock the sender looks at its own `done` first: were it done, its count could be gone and its
  barrier too old to say anything about irq_disabled.
- Data: irq_disabled = 0 is a release, read with acquire by the sender: the handler sees what the section
  wrote. Taking a count back is a release too, read with acquire by the owner: it sees what the handlers wrote.

Two senders that target each other have IRQs on, so either can be served by the other: no deadlock.
"""
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_32, READ_ONCE_PTR, WRITE_ONCE_PTR, atomic_add_return_32, atomic_inc_32, cmpxchg_32,
    cmpxchg_ptr, ipi_lockdep_wait, kmm_await_32, kmm_cpu_relax, kmm_is_zero, smp_load_acquire_32, smp_mb_heavy,
    smp_store_release_32, xchg_ptr,
)
from pykmm_ext.machine.cpu cimport IPI_HANDLED, IPI_SENT, Cpu, call_single_data, count_vm_event, u32, unlikely
from pykmm_ext.machine.region cimport machine_free, machine_malloc
from pykmm_ext.mm.mm_types cimport machine, machine_of

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    """
    #include "kmm/engine.h"
    static inline void kmm_engine_ipi(Cpu *cpu, Cpu *target, kmm_ipi_func func, void *info)
    { cpu->engine->ipi_send(cpu, target, func, info); }
    static inline void kmm_engine_ipi_wait(Cpu *cpu) { cpu->engine->ipi_wait(cpu); }
    """
    void kmm_engine_ipi(Cpu *cpu, Cpu *target, void (*func)(Cpu *, void *) noexcept nogil, void *info) nogil
    void kmm_engine_ipi_wait(Cpu *cpu) nogil

cdef enum:
    # Calls that fit on the sender's stack; more go to the heap, or in several rounds when that is full.
    STACK_CALLS = 32
    BITS = 8 * sizeof(unsigned long)
    SPINS = 100


# Context: `target`'s ipi_lock held by `cpu`'s thread. Runs every queued call, oldest first; returns how many.
cdef u32 flush_smp_call_function_queue(Cpu *cpu, Cpu *target) noexcept nogil:
    cdef call_single_data *csd = <call_single_data *>xchg_ptr(cpu, &target.call_single_queue, NULL)
    cdef call_single_data *older
    cdef call_single_data *fifo = NULL
    cdef u32 n = 0
    while csd != NULL:
        older = csd.next
        csd.next = fifo
        fifo = csd
        csd = older
    while fifo != NULL:
        csd = fifo
        fifo = csd.next
        csd.func(target, csd.info)
        count_vm_event(target, IPI_HANDLED)
        n += 1
        # The sender may return as soon as it sees this: csd is gone. Pairs with the acquire in wait_for_call().
        smp_store_release_32(cpu, &csd.done, 1)
    if n:
        # Release: whoever sees 0 sees what the handlers wrote.
        atomic_add_return_32(cpu, &target.ipi_pending, -n)
    return n


# Context: `target`'s ipi_lock held.
cdef inline void ipi_unlock(Cpu *cpu, Cpu *target) noexcept nogil:
    smp_store_release_32(cpu, &target.ipi_lock, 0)  # pairs with the exchange of who takes it next


# Context: the owner's thread, IRQs on (irq_disabled == 0); its own interrupt entry. Waits for a sender
# that is running handlers for it.
cdef void ipi_slow(Cpu *cpu) noexcept nogil:
    cdef u32 n
    while cmpxchg_32(cpu, &cpu.ipi_lock, 0, 1) != 0:
        kmm_await_32(cpu, &cpu.ipi_lock, kmm_is_zero, 0)
    n = flush_smp_call_function_queue(cpu, cpu)
    ipi_unlock(cpu, cpu)
    if n == 0:
        # Announced, not queued yet: the sender is between two instructions, or descheduled there.
        sched_yield()


# Context: any, before the Cpu is used.
cdef void irq_init_cpu(Cpu *cpu) noexcept nogil:
    cpu.irq_disabled = 0
    cpu.ipi_pending = 0
    cpu.ipi_lock = 0
    cpu.call_single_queue = NULL
    cpu.ipi_slow = ipi_slow


# Context: IRQs on. llist_add() behind the announcement.
cdef inline void send_call(Cpu *cpu, Cpu *target, call_single_data *csd) noexcept nogil:
    cdef call_single_data *head
    # Fully ordered on its own where it matters: smp_mb_heavy() stands between this and any look at the target.
    atomic_inc_32(cpu, &target.ipi_pending)
    while True:
        head = <call_single_data *>READ_ONCE_PTR(cpu, &target.call_single_queue)
        WRITE_ONCE_PTR(cpu, &csd.next, head)
        if cmpxchg_ptr(cpu, &target.call_single_queue, head, csd) == <void *>head:
            break
    count_vm_event(cpu, IPI_SENT)


# Context: IRQs on, after smp_mb_heavy(). Until the call is done: run it in the target's place, or wait.
cdef void wait_for_call(Cpu *cpu, Cpu *target, call_single_data *csd) noexcept nogil:
    cdef unsigned spins = 0
    while not smp_load_acquire_32(cpu, &csd.done):
        if (READ_ONCE_32(cpu, &target.irq_disabled) == 0 and READ_ONCE_32(cpu, &target.ipi_lock) == 0
                and cmpxchg_32(cpu, &target.ipi_lock, 0, 1) == 0):
            # Acquire: what the last IRQ-off section wrote. See the head of the file for the order of the two.
            if not smp_load_acquire_32(cpu, &csd.done) and smp_load_acquire_32(cpu, &target.irq_disabled) == 0:
                flush_smp_call_function_queue(cpu, target)
            ipi_unlock(cpu, target)
            continue
        # Our own interrupts are on: somebody may be waiting for this CPU as we wait for another.
        if READ_ONCE_32(cpu, &cpu.ipi_pending) != 0:
            cpu.ipi_slow(cpu)
        spins += 1
        if spins < SPINS:
            kmm_cpu_relax()
        else:
            sched_yield()


# Context: as smp_call_function_many(). Sends to the next `room` CPUs of the mask from `first` on and waits.
# Returns the CPU to go on from.
cdef u32 call_some(Cpu *cpu, machine *m, const unsigned long *mask, void (*func)(Cpu *, void *) noexcept nogil,
                   void *info, u32 first, call_single_data *csd, u32 room) noexcept nogil:
    cdef u32 id = first, n = 0, at
    cdef unsigned long word
    while id < m.nr_cpus and n < room:
        word = READ_ONCE(cpu, &mask[id // BITS]) >> (id % BITS)
        if word == 0:
            id = (id // BITS + 1) * BITS
            continue
        if not (word & 1) or id == cpu.id:
            id += 1
            continue
        csd[n].func = func
        csd[n].info = info
        csd[n].done = 0
        # Keeps the target for the waiting loop: the mask may change meanwhile.
        csd[n].target = m.cpus[id]
        send_call(cpu, m.cpus[id], &csd[n])
        n += 1
        id += 1
    if n == 0:
        return id
    # Pairs with smp_mb_light() of local_irq_disable() on every target.
    smp_mb_heavy(cpu)
    for at in range(n):
        wait_for_call(cpu, csd[at].target, &csd[at])
    return id


# Context: as smp_call_function_many(). On a virtual engine interrupts are the engine's: it runs the handler when it
# likes, and waits.
cdef void call_on_engine(Cpu *cpu, machine *m, const unsigned long *mask, void (*func)(Cpu *, void *) noexcept nogil,
                         void *info) noexcept nogil:
    cdef u32 id
    cdef u32 n = 0
    cdef unsigned long word = 0
    for id in range(m.nr_cpus):
        if id % BITS == 0:
            word = READ_ONCE(cpu, &mask[id // BITS])
        if id != cpu.id and word >> (id % BITS) & 1:
            kmm_engine_ipi(cpu, m.cpus[id], func, info)
            count_vm_event(cpu, IPI_SENT)
            n += 1
    if n:
        kmm_engine_ipi_wait(cpu)


cdef void smp_call_function_many(Cpu *cpu, const unsigned long *mask,
                                 void (*func)(Cpu *, void *) noexcept nogil, void *info) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef call_single_data local[STACK_CALLS]
    cdef call_single_data *csd = local
    cdef u32 room = STACK_CALLS
    cdef u32 first = 0
    if unlikely(cpu.engine != NULL):
        ipi_lockdep_wait(cpu, b"smp_call_function_many")
        call_on_engine(cpu, m, mask, func, info)
        return
    if m.nr_cpus > STACK_CALLS + 1:
        csd = <call_single_data *>machine_malloc(cpu, m, m.nr_cpus * sizeof(call_single_data), 16, b"call_single_data")
        if csd != NULL:
            room = m.nr_cpus
        else:
            csd = local
    while first < m.nr_cpus:
        first = call_some(cpu, m, mask, func, info, first, csd, room)
    if csd != local:
        machine_free(cpu, m, csd)
