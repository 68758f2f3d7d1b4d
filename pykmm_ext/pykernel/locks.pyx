# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/rwsem.c, kernel/rcu/, include/linux/seqlock.h and atomic.h, as a strategy in Python calls them."""
from pykmm_ext.kernel cimport atomic, rcu, rwsem, seqlock, srcu
from pykmm_ext.kernel.rwsem cimport rw_semaphore
from pykmm_ext.kernel.seqlock cimport seqlock_t
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport machine_of, mm_struct
from pykmm_ext.pykernel.call cimport (
    HELD_MM_SEQ, HELD_MMAP_READ, HELD_MMAP_WRITE, HELD_RCU, HELD_SRCU, RUNS, SLEEPS, SPINS, CpuHandle, call,
    give_back, hold, holds, room, same, stale,
)
from pykmm_ext.pykernel.handles cimport FieldHandle, MmHandle, VmaHandle, field_word, fits


# ---- adapters for functions of one signature: `b` is the function ----

ctypedef void (*cpu_function)(Cpu *cpu) noexcept nogil
ctypedef void (*sem_function)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
ctypedef bint (*sem_trylock)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
ctypedef void (*mm_seq_function)(Cpu *cpu, seqlock_t *sl) noexcept nogil


# Context: as the function `b`.
cdef u64 do_cpu(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    (<cpu_function>b)(cpu)
    return 0


# Context: as the function `b`.
cdef u64 do_sem(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    (<sem_function>b)(cpu, &(<mm_struct *>p).mmap_sem)
    return 0


# Context: as the function `b`.
cdef u64 do_sem_trylock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return (<sem_trylock>b)(cpu, &(<mm_struct *>p).mmap_sem)


# Context: as the function `b`.
cdef u64 do_mm_seq(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    (<mm_seq_function>b)(cpu, &(<mm_struct *>p).mm_seq)
    return 0


# Context: GIL held, given up while the function may wait.
cdef int call_cpu(CpuHandle cpu, cpu_function fn, u32 may=RUNS) except -1:
    call(cpu, do_cpu, NULL, 0, <unsigned long>fn, may)
    return 0


# Context: GIL held, given up while the function may wait.
cdef int call_sem(CpuHandle cpu, sem_function fn, MmHandle mm, u32 may=RUNS) except -1:
    call(cpu, do_sem, mm.mm, 0, <unsigned long>fn, may)
    return 0


# Context: GIL held.
cdef bint call_sem_trylock(CpuHandle cpu, sem_trylock fn, MmHandle mm) except -1:
    return call(cpu, do_sem_trylock, mm.mm, 0, <unsigned long>fn) != 0


# Context: GIL held, given up while the function may wait.
cdef int call_mm_seq(CpuHandle cpu, mm_seq_function fn, MmHandle mm, u32 may=RUNS) except -1:
    call(cpu, do_mm_seq, mm.mm, 0, <unsigned long>fn, may)
    return 0


# ---- adapters of one function each ----

# Context: as srcu_read_lock().
cdef u64 do_srcu_read_lock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return <u64>srcu.srcu_read_lock(cpu, <srcu.srcu_struct *>p)


# Context: as srcu_read_unlock().
cdef u64 do_srcu_read_unlock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    srcu.srcu_read_unlock(cpu, <srcu.srcu_struct *>p, <int>a)
    return 0


# Context: as synchronize_srcu().
cdef u64 do_synchronize_srcu(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    srcu.synchronize_srcu(cpu, <srcu.srcu_struct *>p)
    return 0


# Context: as raw_read_seqcount().
cdef u64 do_raw_read_seqcount(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return seqlock.raw_read_seqcount(cpu, <seqlock.seqcount_t *>p)


# Context: as read_seqcount_retry().
cdef u64 do_read_seqcount_retry(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return seqlock.read_seqcount_retry(cpu, <seqlock.seqcount_t *>p, <u32>a)


# Context: as read_seqbegin().
cdef u64 do_read_seqbegin(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return seqlock.read_seqbegin(cpu, &(<mm_struct *>p).mm_seq)


# Context: as read_seqretry().
cdef u64 do_read_seqretry(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return seqlock.read_seqretry(cpu, &(<mm_struct *>p).mm_seq, <u32>a)


# ---- mmap_sem ----

# Context: GIL held, native. It would wait for itself.
cdef int deadlock(CpuHandle cpu, str what, MmHandle mm, str held) except -1:
    raise RuntimeError(f"{what} on CPU {cpu.cpu.id}, which holds {held} of address space {mm.mm.id} already: it would wait "
                       "for itself")


# Context of the next two: GIL held. `kind`: as what it is, or was, held.
cdef bint try_sem(CpuHandle cpu, MmHandle mm, sem_trylock fn, u32 kind) except -1:
    same(cpu, mm.on)
    room(cpu)
    if not call_sem_trylock(cpu, fn, mm):
        return False
    hold(cpu, kind, mm.mm)
    return True


cdef int drop_sem(CpuHandle cpu, MmHandle mm, sem_function fn, u32 kind, str what) except -1:
    same(cpu, mm.on)
    give_back(cpu, kind, mm.mm, what)
    return call_sem(cpu, fn, mm)


def mmap_read_lock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for reading; may sleep."""
    same(cpu, mm.on)
    room(cpu)
    if cpu.cpu.engine == NULL and holds(cpu.held, HELD_MMAP_WRITE, mm.mm):
        deadlock(cpu, "mmap_read_lock()", mm, "mmap_sem for writing")
    if cpu.cpu.engine != NULL or not call_sem_trylock(cpu, rwsem.down_read_trylock, mm):
        call_sem(cpu, rwsem.down_read, mm, SLEEPS)
    hold(cpu, HELD_MMAP_READ, mm.mm)


def mmap_read_trylock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for reading if that needs no waiting: True = it is taken."""
    return try_sem(cpu, mm, rwsem.down_read_trylock, HELD_MMAP_READ)


def mmap_read_unlock(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    drop_sem(cpu, mm, rwsem.up_read, HELD_MMAP_READ, "mmap_read_unlock()")


def down_write(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for writing; may sleep. What a strategy's mmap_write_lock() does in the end."""
    same(cpu, mm.on)
    room(cpu)
    if cpu.cpu.engine == NULL:
        for kind, words in ((HELD_MMAP_WRITE, "mmap_sem for writing"), (HELD_MMAP_READ, "mmap_sem for reading")):
            if holds(cpu.held, kind, mm.mm):
                deadlock(cpu, "down_write()", mm, words)
    call_sem(cpu, rwsem.down_write, mm, SLEEPS)
    hold(cpu, HELD_MMAP_WRITE, mm.mm)


def down_write_trylock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for writing if that needs no waiting: True = it is taken."""
    return try_sem(cpu, mm, rwsem.down_write_trylock, HELD_MMAP_WRITE)


def up_write(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    drop_sem(cpu, mm, rwsem.up_write, HELD_MMAP_WRITE, "up_write()")


def downgrade_write(CpuHandle cpu not None, MmHandle mm not None):
    """Go on as a reader of mmap_sem, nobody in between. What a strategy's mmap_write_downgrade() does in the end."""
    drop_sem(cpu, mm, rwsem.downgrade_write, HELD_MMAP_WRITE, "downgrade_write()")
    hold(cpu, HELD_MMAP_READ, mm.mm)


# ---- RCU and SRCU ----

def rcu_read_lock(CpuHandle cpu not None):
    """Enter an RCU read section. No sleeping inside."""
    room(cpu)
    call_cpu(cpu, rcu.rcu_read_lock)
    hold(cpu, HELD_RCU, NULL)


def rcu_read_unlock(CpuHandle cpu not None):
    """The reverse."""
    give_back(cpu, HELD_RCU, NULL, "rcu_read_unlock()")
    call_cpu(cpu, rcu.rcu_read_unlock)


def srcu_read_lock(CpuHandle cpu not None):
    """Enter a read section of vma_srcu, after which spf_free_vma() frees. Returns what srcu_read_unlock() wants."""
    cdef void *ssp
    cdef long index
    if cpu.cpu == NULL:
        stale()
    room(cpu)
    ssp = &machine_of(cpu.cpu).vma_srcu
    index = <long>call(cpu, do_srcu_read_lock, ssp)
    hold(cpu, HELD_SRCU, ssp, index)
    return index


def srcu_read_unlock(CpuHandle cpu not None, long index):
    """The reverse."""
    cdef void *ssp
    if cpu.cpu == NULL:
        stale()
    ssp = &machine_of(cpu.cpu).vma_srcu
    give_back(cpu, HELD_SRCU, ssp, "srcu_read_unlock()", index)
    call(cpu, do_srcu_read_unlock, ssp, <unsigned long>index)


# Context: GIL held. Native: a grace period would wait for the caller's own section.
cdef int not_inside(CpuHandle cpu, u32 kind, str what) except -1:
    if cpu.cpu == NULL:
        stale()
    if cpu.cpu.engine == NULL and (holds(cpu.held, kind, NULL) or (kind == HELD_RCU and cpu.cpu.rcu_nesting)):
        raise RuntimeError(f"{what} on CPU {cpu.cpu.id} inside of a read section of its own: it would wait for itself")
    return 0


def synchronize_rcu(CpuHandle cpu not None):
    """Wait for every RCU read section that has begun. Not inside of one."""
    not_inside(cpu, HELD_RCU, "synchronize_rcu()")
    call_cpu(cpu, rcu.synchronize_rcu, SLEEPS)


def synchronize_srcu(CpuHandle cpu not None):
    """Wait for every read section of vma_srcu that has begun. Not inside of one."""
    not_inside(cpu, HELD_SRCU, "synchronize_srcu()")
    call(cpu, do_synchronize_srcu, &machine_of(cpu.cpu).vma_srcu, 0, 0, SLEEPS)


# ---- sequence counts ----

# Context: GIL held. The seqcount_t of a handle of this callback.
cdef void *seqcount_of(CpuHandle cpu, object x) except NULL:
    if isinstance(x, VmaHandle):
        same(cpu, (<VmaHandle>x).on)
        return &(<VmaHandle>x).vma.vm_sequence
    if isinstance(x, MmHandle):
        same(cpu, (<MmHandle>x).on)
        return &(<MmHandle>x).mm.write_protect_seq
    raise TypeError(f"expected a VmaHandle or an MmHandle, not {type(x).__name__}")


def raw_read_seqcount(CpuHandle cpu not None, x):
    """vm_sequence of a VMA, or write_protect_seq of an address space (odd while fork write-protects); and a read barrier."""
    return call(cpu, do_raw_read_seqcount, seqcount_of(cpu, x))


def read_seqcount_retry(CpuHandle cpu not None, x, unsigned int start):
    """After a read barrier: is vm_sequence, or write_protect_seq, another than `start`?"""
    return bool(call(cpu, do_read_seqcount_retry, seqcount_of(cpu, x), start))


def read_seqbegin(CpuHandle cpu not None, MmHandle mm not None):
    """mm_seq, when no writer is inside; waits for that."""
    same(cpu, mm.on)
    if cpu.cpu.engine == NULL and holds(cpu.held, HELD_MM_SEQ, mm.mm):
        deadlock(cpu, "read_seqbegin()", mm, "mm_seq")
    return call(cpu, do_read_seqbegin, mm.mm, 0, 0, SPINS)


def read_seqretry(CpuHandle cpu not None, MmHandle mm not None, unsigned int start):
    """After a read barrier: has the tree changed since read_seqbegin() returned `start`?"""
    same(cpu, mm.on)
    return bool(call(cpu, do_read_seqretry, mm.mm, start))


def write_seqlock(CpuHandle cpu not None, MmHandle mm not None):
    """Begin to change what mm_seq is for."""
    same(cpu, mm.on)
    room(cpu)
    if cpu.cpu.engine == NULL and holds(cpu.held, HELD_MM_SEQ, mm.mm):
        deadlock(cpu, "write_seqlock()", mm, "mm_seq")
    call_mm_seq(cpu, seqlock.write_seqlock, mm, SPINS)
    hold(cpu, HELD_MM_SEQ, mm.mm)


def write_sequnlock(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MM_SEQ, mm.mm, "write_sequnlock()")
    call_mm_seq(cpu, seqlock.write_sequnlock, mm)


# ---- words: p is a field_word ----

# Context: as xchg().
cdef u64 do_xchg(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef field_word *w = <field_word *>p
    return atomic.xchg_32(cpu, <u32 *>w.p, <u32>a) if w.width == 4 else atomic.xchg(cpu, <unsigned long *>w.p, a)


# Context: as cmpxchg().
cdef u64 do_cmpxchg(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef field_word *w = <field_word *>p
    if w.width == 4:
        return atomic.cmpxchg_32(cpu, <u32 *>w.p, <u32>a, <u32>b)
    return atomic.cmpxchg(cpu, <unsigned long *>w.p, a, b)


# Context: as atomic_add_return().
cdef u64 do_add_return(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef field_word *w = <field_word *>p
    if w.width == 4:
        return atomic.atomic_add_return_32(cpu, <u32 *>w.p, <u32>a)
    return atomic.atomic_add_return(cpu, <unsigned long *>w.p, a)


# Context: as smp_load_acquire().
cdef u64 do_acquire(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef field_word *w = <field_word *>p
    if w.width == 4:
        return atomic.smp_load_acquire_32(cpu, <u32 *>w.p)
    return atomic.smp_load_acquire(cpu, <unsigned long *>w.p)


# Context: as smp_store_release().
cdef u64 do_release(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef field_word *w = <field_word *>p
    if w.width == 4:
        atomic.smp_store_release_32(cpu, <u32 *>w.p, <u32>a)
    else:
        atomic.smp_store_release(cpu, <unsigned long *>w.p, a)
    return 0


# The value is such that `arg` = mask << 32 | value: 32 bits are enough for what anybody waits for.
cdef int masked_equal(u64 value, u64 arg) noexcept nogil:
    return <u32>(value & (arg >> 32)) == <u32>arg


# Context: as kmm_await().
cdef u64 do_await(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    cdef field_word *w = <field_word *>p
    if w.width == 4:
        return atomic.kmm_await_32(cpu, <u32 *>w.p, masked_equal, a)
    return atomic.kmm_await(cpu, <unsigned long *>w.p, masked_equal, a)


# Context: GIL held. The word of an MmHandle, VmaHandle or FieldHandle of this callback.
cdef field_word word_of(CpuHandle cpu, object x) except *:
    cdef field_word w
    if isinstance(x, VmaHandle):
        same(cpu, (<VmaHandle>x).on)
        w.p = &(<VmaHandle>x).vma.strategy_data
        w.width = 8
    elif isinstance(x, MmHandle):
        same(cpu, (<MmHandle>x).on)
        w.p = &(<MmHandle>x).mm.strategy_data
        w.width = 8
    elif isinstance(x, FieldHandle):
        same(cpu, (<FieldHandle>x).on)
        w = (<FieldHandle>x).word
    else:
        raise TypeError(f"expected an MmHandle, a VmaHandle or a FieldHandle, not {type(x).__name__}")
    return w


def cmpxchg(CpuHandle cpu not None, x, unsigned long old, unsigned long new):
    """Put `new` into x if it is `old`: what it was. A full barrier if it did."""
    cdef field_word word = word_of(cpu, x)
    fits(word, old | new)
    return call(cpu, do_cmpxchg, &word, old, new)


def xchg(CpuHandle cpu not None, x, unsigned long new):
    """Put `new` into x: what it was. A full barrier."""
    cdef field_word word = word_of(cpu, x)
    fits(word, new)
    return call(cpu, do_xchg, &word, new)


def atomic_add_return(CpuHandle cpu not None, x, long n):
    """Add `n` to x, modulo 2**64 (2**32 in a word of 32 bits): what it is now. A full barrier."""
    cdef field_word word = word_of(cpu, x)
    return call(cpu, do_add_return, &word, <unsigned long>n)


def smp_load_acquire(CpuHandle cpu not None, x):
    """x, read before everything that comes after."""
    cdef field_word word = word_of(cpu, x)
    return call(cpu, do_acquire, &word)


def smp_store_release(CpuHandle cpu not None, x, unsigned long value):
    """Put `value` into x after everything that came before."""
    cdef field_word word = word_of(cpu, x)
    fits(word, value)
    call(cpu, do_release, &word, value)


def await_equal(CpuHandle cpu not None, x, unsigned int mask, unsigned int value):
    """Wait until x & mask == value, with acquire order; returns the word. No kernel function: stands in for
    wait_var_event()."""
    cdef field_word word = word_of(cpu, x)
    return call(cpu, do_await, &word, <unsigned long>mask << 32 | value, 0, SPINS)


def smp_mb(CpuHandle cpu not None):
    """A full memory barrier."""
    call_cpu(cpu, atomic.smp_mb)


def smp_rmb(CpuHandle cpu not None):
    """Loads before it come before loads after it."""
    call_cpu(cpu, atomic.smp_rmb)


def smp_wmb(CpuHandle cpu not None):
    """Stores before it come before stores after it."""
    call_cpu(cpu, atomic.smp_wmb)
