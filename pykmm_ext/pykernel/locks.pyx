# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/rwsem.c, kernel/rcu/, include/linux/seqlock.h and atomic.h, as a strategy in Python calls them."""
from pykmm_ext.kernel cimport atomic, rcu, rwsem, seqlock, srcu
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport machine_of, mm_struct
from pykmm_ext.pykernel.call cimport (
    HELD_MM_SEQ, HELD_MMAP_READ, HELD_MMAP_WRITE, HELD_RCU, HELD_SRCU, SLEEPS, SPINS, CpuHandle, call, give_back,
    hold, holds, room, same, stale,
)
from pykmm_ext.pykernel.handles cimport FieldHandle, MmHandle, VmaHandle


# ---- contexts of the next: as the kernel function that each calls ----

# Context: as down_read().
cdef u64 do_down_read(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rwsem.down_read(cpu, &(<mm_struct *>p).mmap_sem)
    return 0


# Context: as down_read_trylock().
cdef u64 do_down_read_trylock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return rwsem.down_read_trylock(cpu, &(<mm_struct *>p).mmap_sem)


# Context: as up_read().
cdef u64 do_up_read(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rwsem.up_read(cpu, &(<mm_struct *>p).mmap_sem)
    return 0


# Context: as down_write().
cdef u64 do_down_write(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rwsem.down_write(cpu, &(<mm_struct *>p).mmap_sem)
    return 0


# Context: as down_write_trylock().
cdef u64 do_down_write_trylock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return rwsem.down_write_trylock(cpu, &(<mm_struct *>p).mmap_sem)


# Context: as up_write().
cdef u64 do_up_write(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rwsem.up_write(cpu, &(<mm_struct *>p).mmap_sem)
    return 0


# Context: as downgrade_write().
cdef u64 do_downgrade_write(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rwsem.downgrade_write(cpu, &(<mm_struct *>p).mmap_sem)
    return 0


# Context: as rcu_read_lock().
cdef u64 do_rcu_read_lock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rcu.rcu_read_lock(cpu)
    return 0


# Context: as rcu_read_unlock().
cdef u64 do_rcu_read_unlock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rcu.rcu_read_unlock(cpu)
    return 0


# Context: as synchronize_rcu().
cdef u64 do_synchronize_rcu(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    rcu.synchronize_rcu(cpu)
    return 0


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


# Context: as write_seqlock().
cdef u64 do_write_seqlock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    seqlock.write_seqlock(cpu, &(<mm_struct *>p).mm_seq)
    return 0


# Context: as write_sequnlock().
cdef u64 do_write_sequnlock(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    seqlock.write_sequnlock(cpu, &(<mm_struct *>p).mm_seq)
    return 0


# ---- mmap_sem ----

# Context: GIL held, native. It would wait for itself.
cdef int deadlock(CpuHandle cpu, str what, MmHandle mm, str held) except -1:
    raise RuntimeError(f"{what} on CPU {cpu.cpu.id}, which holds {held} of address space {mm.mm.id} already: it would wait "
                       "for itself")


def mmap_read_lock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for reading; may sleep."""
    same(cpu, mm.on)
    room(cpu)
    if cpu.cpu.engine == NULL and holds(cpu.held, HELD_MMAP_WRITE, mm.mm):
        deadlock(cpu, "mmap_read_lock()", mm, "mmap_sem for writing")
    if cpu.cpu.engine != NULL or not call(cpu, do_down_read_trylock, mm.mm):
        call(cpu, do_down_read, mm.mm, 0, 0, SLEEPS)
    hold(cpu, HELD_MMAP_READ, mm.mm)


def mmap_read_trylock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for reading if that needs no waiting: True = it is taken."""
    same(cpu, mm.on)
    room(cpu)
    if not call(cpu, do_down_read_trylock, mm.mm):
        return False
    hold(cpu, HELD_MMAP_READ, mm.mm)
    return True


def mmap_read_unlock(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MMAP_READ, mm.mm, "mmap_read_unlock()")
    call(cpu, do_up_read, mm.mm)


def down_write(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for writing; may sleep. What a strategy's mmap_write_lock() does in the end."""
    same(cpu, mm.on)
    room(cpu)
    if cpu.cpu.engine == NULL:
        for kind, words in ((HELD_MMAP_WRITE, "mmap_sem for writing"), (HELD_MMAP_READ, "mmap_sem for reading")):
            if holds(cpu.held, kind, mm.mm):
                deadlock(cpu, "down_write()", mm, words)
    call(cpu, do_down_write, mm.mm, 0, 0, SLEEPS)
    hold(cpu, HELD_MMAP_WRITE, mm.mm)


def down_write_trylock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for writing if that needs no waiting: True = it is taken."""
    same(cpu, mm.on)
    room(cpu)
    if not call(cpu, do_down_write_trylock, mm.mm):
        return False
    hold(cpu, HELD_MMAP_WRITE, mm.mm)
    return True


def up_write(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MMAP_WRITE, mm.mm, "up_write()")
    call(cpu, do_up_write, mm.mm)


def downgrade_write(CpuHandle cpu not None, MmHandle mm not None):
    """Go on as a reader of mmap_sem, nobody in between. What a strategy's mmap_write_downgrade() does in the end."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MMAP_WRITE, mm.mm, "downgrade_write()")
    call(cpu, do_downgrade_write, mm.mm)
    hold(cpu, HELD_MMAP_READ, mm.mm)


# ---- RCU and SRCU ----

def rcu_read_lock(CpuHandle cpu not None):
    """Enter an RCU read section. No sleeping inside."""
    room(cpu)
    call(cpu, do_rcu_read_lock, NULL)
    hold(cpu, HELD_RCU, NULL)


def rcu_read_unlock(CpuHandle cpu not None):
    """The reverse."""
    give_back(cpu, HELD_RCU, NULL, "rcu_read_unlock()")
    call(cpu, do_rcu_read_unlock, NULL)


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
    call(cpu, do_synchronize_rcu, NULL, 0, 0, SLEEPS)


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
    call(cpu, do_write_seqlock, mm.mm, 0, 0, SPINS)
    hold(cpu, HELD_MM_SEQ, mm.mm)


def write_sequnlock(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MM_SEQ, mm.mm, "write_sequnlock()")
    call(cpu, do_write_sequnlock, mm.mm)


# ---- words; contexts: any ----

# Context: as xchg().
cdef u64 do_xchg(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.xchg(cpu, <unsigned long *>p, a)


# Context: as xchg_32().
cdef u64 do_xchg_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.xchg_32(cpu, <u32 *>p, <u32>a)


# Context: as cmpxchg().
cdef u64 do_cmpxchg(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.cmpxchg(cpu, <unsigned long *>p, a, b)


# Context: as cmpxchg_32().
cdef u64 do_cmpxchg_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.cmpxchg_32(cpu, <u32 *>p, <u32>a, <u32>b)


# Context: as atomic_add_return().
cdef u64 do_add_return(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.atomic_add_return(cpu, <unsigned long *>p, a)


# Context: as atomic_add_return_32().
cdef u64 do_add_return_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.atomic_add_return_32(cpu, <u32 *>p, <u32>a)


# Context: as smp_load_acquire().
cdef u64 do_acquire(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.smp_load_acquire(cpu, <unsigned long *>p)


# Context: as smp_load_acquire_32().
cdef u64 do_acquire_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.smp_load_acquire_32(cpu, <u32 *>p)


# Context: as smp_store_release().
cdef u64 do_release(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    atomic.smp_store_release(cpu, <unsigned long *>p, a)
    return 0


# Context: as smp_store_release_32().
cdef u64 do_release_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    atomic.smp_store_release_32(cpu, <u32 *>p, <u32>a)
    return 0


# The value is such that `arg` = mask << 32 | value: 32 bits are enough for what anybody waits for.
cdef int masked_equal(u64 value, u64 arg) noexcept nogil:
    return <u32>(value & (arg >> 32)) == <u32>arg


# Context: as kmm_await().
cdef u64 do_await(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.kmm_await(cpu, <unsigned long *>p, masked_equal, a)


# Context: as kmm_await_32().
cdef u64 do_await_32(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    return atomic.kmm_await_32(cpu, <u32 *>p, masked_equal, a)


# Context: as smp_mb().
cdef u64 do_mb(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    atomic.smp_mb(cpu)
    return 0


# Context: as smp_rmb().
cdef u64 do_rmb(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    atomic.smp_rmb(cpu)
    return 0


# Context: as smp_wmb().
cdef u64 do_wmb(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil:
    atomic.smp_wmb(cpu)
    return 0


# Context: GIL held. Where the word of an MmHandle, VmaHandle or FieldHandle of this callback lies. *narrow: 32 bits.
cdef void *word_of(CpuHandle cpu, object x, bint *narrow) except NULL:
    narrow[0] = False
    if isinstance(x, VmaHandle):
        same(cpu, (<VmaHandle>x).on)
        return &(<VmaHandle>x).vma.strategy_data
    if isinstance(x, MmHandle):
        same(cpu, (<MmHandle>x).on)
        return &(<MmHandle>x).mm.strategy_data
    if isinstance(x, FieldHandle):
        same(cpu, (<FieldHandle>x).on)
        narrow[0] = (<FieldHandle>x).width == 4
        return (<FieldHandle>x).p
    raise TypeError(f"expected an MmHandle, a VmaHandle or a FieldHandle, not {type(x).__name__}")


# Context: GIL held. As the conversion of a number that is too large for its C type.
cdef int fits(bint narrow, unsigned long value) except -1:
    if narrow and value >> 32:
        raise OverflowError(f"{value:#x} is too large for a word of 32 bits")
    return 0


def cmpxchg(CpuHandle cpu not None, x, unsigned long old, unsigned long new):
    """Put `new` into x if it is `old`: what it was. A full barrier if it did."""
    cdef bint narrow = False
    cdef void *word = word_of(cpu, x, &narrow)
    fits(narrow, old | new)
    return call(cpu, do_cmpxchg_32 if narrow else do_cmpxchg, word, old, new)


def xchg(CpuHandle cpu not None, x, unsigned long new):
    """Put `new` into x: what it was. A full barrier."""
    cdef bint narrow = False
    cdef void *word = word_of(cpu, x, &narrow)
    fits(narrow, new)
    return call(cpu, do_xchg_32 if narrow else do_xchg, word, new)


def atomic_add_return(CpuHandle cpu not None, x, long n):
    """Add `n` to x, modulo 2**64 (2**32 in a word of 32 bits): what it is now. A full barrier."""
    cdef bint narrow = False
    cdef void *word = word_of(cpu, x, &narrow)
    return call(cpu, do_add_return_32 if narrow else do_add_return, word, <unsigned long>n)


def smp_load_acquire(CpuHandle cpu not None, x):
    """x, read before everything that comes after."""
    cdef bint narrow = False
    cdef void *word = word_of(cpu, x, &narrow)
    return call(cpu, do_acquire_32 if narrow else do_acquire, word)


def smp_store_release(CpuHandle cpu not None, x, unsigned long value):
    """Put `value` into x after everything that came before."""
    cdef bint narrow = False
    cdef void *word = word_of(cpu, x, &narrow)
    fits(narrow, value)
    call(cpu, do_release_32 if narrow else do_release, word, value)


def await_equal(CpuHandle cpu not None, x, unsigned int mask, unsigned int value):
    """Wait until x & mask == value, with acquire order; returns the word. No kernel function: stands in for
    wait_var_event()."""
    cdef bint narrow = False
    cdef void *word = word_of(cpu, x, &narrow)
    return call(cpu, do_await_32 if narrow else do_await, word, <unsigned long>mask << 32 | value, 0, SPINS)


def smp_mb(CpuHandle cpu not None):
    """A full memory barrier."""
    call(cpu, do_mb, NULL)


def smp_rmb(CpuHandle cpu not None):
    """Loads before it come before loads after it."""
    call(cpu, do_rmb, NULL)


def smp_wmb(CpuHandle cpu not None):
    """Stores before it come before stores after it."""
    call(cpu, do_wmb, NULL)
