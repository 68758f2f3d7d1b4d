# SPDX-License-Identifier: GPL-2.0-only
"""The kernel functions of mm/mmap.c, mm/memory.c and kernel/ as a strategy in Python calls them, under their names.

Stands in for the headers that a compiled strategy cimports: the same functions with the same first argument, on handles
instead of pointers. A handle belongs to the callback that got it and raises ReferenceError afterwards; it is no
protection within the callback: a VMA that was freed meanwhile is a use after free, as it is in a kernel.

Who runs against whom: a Cpu is driven by one thread, so its handles and its held_locks are. The GIL is held here except
while a function may wait. On the check engine every function runs through engine_ops.enter(): each access to shared
memory is a step there, and a function that waits blocks the vCPU.
"""
cimport cython

import sys

from pykmm_ext.kernel cimport atomic, rcu, rwsem, seqlock, srcu
from pykmm_ext.kernel.rbtree cimport RB_EMPTY_NODE
from pykmm_ext.machine.cpu cimport count_strategy, rcu_head
from pykmm_ext.mm cimport fault, memory, speculative, vma as vmas
from pykmm_ext.mm.mm_types cimport machine_of, vm_fault_t

from pykmm_ext.kernel.primitives import Abandoned

cdef extern from *:
    """
    #include "kmm/engine.h"
    static inline int kmm_python_enter(Cpu *cpu, void (*fn)(Cpu *, void *), void *arg, u64 where)
    { return cpu->engine->enter(cpu, fn, arg, where); }
    """
    int kmm_python_enter(Cpu *cpu, void (*fn)(Cpu *cpu, void *arg) noexcept nogil, void *arg, u64 where)

ctypedef vm_fault_t (*fault_function)(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil
ctypedef void (*mm_function)(Cpu *cpu, mm_struct *mm) noexcept nogil
ctypedef void (*vma_function)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
ctypedef void (*section_function)(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil
ctypedef void (*machine_function)(Cpu *cpu, machine *m) noexcept nogil

cdef enum:
    OP_READ, OP_READ_32, OP_WRITE, OP_XCHG, OP_CMPXCHG, OP_ADD_RETURN, OP_ACQUIRE, OP_RELEASE, OP_AWAIT, OP_MB, OP_RMB
    OP_WMB, OP_EMPTY_NODE, OP_FIND_VMA, OP_FIND_VMA_SRCU, OP_DOWN_READ, OP_DOWN_READ_TRYLOCK, OP_UP_READ, OP_DOWN_WRITE
    OP_DOWN_WRITE_TRYLOCK, OP_UP_WRITE, OP_RCU_LOCK, OP_RCU_UNLOCK, OP_SRCU_LOCK, OP_SRCU_UNLOCK, OP_SYNCHRONIZE_RCU
    OP_SYNCHRONIZE_SRCU, OP_RAW_READ_SEQCOUNT, OP_SEQCOUNT_RETRY, OP_SEQBEGIN, OP_SEQRETRY, OP_WRITE_SEQLOCK
    OP_WRITE_SEQUNLOCK, OP_VMA_HAS_CHANGED, OP_MM_FAULT, OP_CALL

cdef enum:
    HELD_MMAP_READ, HELD_MMAP_WRITE, HELD_RCU, HELD_SRCU, HELD_MM_SEQ

cdef enum:
    CALL_FAULT, CALL_MM, CALL_VMA, CALL_SECTION, CALL_MACHINE

# One call, for perform().
cdef struct kernel_op:
    u32 code
    u32 signature
    void *p
    void *q
    unsigned long a, b
    u64 result


# The word of an object at p is such that `arg` = mask << 32 | value: 32 bits are enough for what anybody waits for.
cdef int masked_equal(u64 value, u64 arg) noexcept nogil:
    return <u32>(value & (arg >> 32)) == <u32>arg


# Context: as the function's own; on the engine a vCPU, with the GIL, which a wait gives up.
cdef void perform(Cpu *cpu, void *arg) noexcept nogil:
    cdef kernel_op *o = <kernel_op *>arg
    cdef unsigned long *word = <unsigned long *>o.p
    cdef mm_struct *mm = <mm_struct *>o.p
    cdef vm_area_struct *vma = <vm_area_struct *>o.p
    cdef u32 code = o.code
    if code == OP_READ:
        o.result = atomic.READ_ONCE(cpu, word)
    elif code == OP_READ_32:
        o.result = atomic.READ_ONCE_32(cpu, <u32 *>o.p)
    elif code == OP_WRITE:
        atomic.WRITE_ONCE(cpu, word, o.a)
    elif code == OP_XCHG:
        o.result = atomic.xchg(cpu, word, o.a)
    elif code == OP_CMPXCHG:
        o.result = atomic.cmpxchg(cpu, word, o.a, o.b)
    elif code == OP_ADD_RETURN:
        o.result = atomic.atomic_add_return(cpu, word, o.a)
    elif code == OP_ACQUIRE:
        o.result = atomic.smp_load_acquire(cpu, word)
    elif code == OP_RELEASE:
        atomic.smp_store_release(cpu, word, o.a)
    elif code == OP_AWAIT:
        o.result = atomic.kmm_await(cpu, word, masked_equal, o.a)
    elif code == OP_MB:
        atomic.smp_mb(cpu)
    elif code == OP_RMB:
        atomic.smp_rmb(cpu)
    elif code == OP_WMB:
        atomic.smp_wmb(cpu)
    elif code == OP_EMPTY_NODE:
        o.result = RB_EMPTY_NODE(cpu, &vma.vm_rb)
    elif code == OP_FIND_VMA:
        o.q = vmas.find_vma(cpu, mm, o.a)
    elif code == OP_FIND_VMA_SRCU:
        o.q = vmas.find_vma_srcu(cpu, mm, o.a)
    elif code == OP_DOWN_READ:
        rwsem.down_read(cpu, &mm.mmap_sem)
    elif code == OP_DOWN_READ_TRYLOCK:
        o.result = rwsem.down_read_trylock(cpu, &mm.mmap_sem)
    elif code == OP_UP_READ:
        rwsem.up_read(cpu, &mm.mmap_sem)
    elif code == OP_DOWN_WRITE:
        rwsem.down_write(cpu, &mm.mmap_sem)
    elif code == OP_DOWN_WRITE_TRYLOCK:
        o.result = rwsem.down_write_trylock(cpu, &mm.mmap_sem)
    elif code == OP_UP_WRITE:
        rwsem.up_write(cpu, &mm.mmap_sem)
    elif code == OP_RCU_LOCK:
        rcu.rcu_read_lock(cpu)
    elif code == OP_RCU_UNLOCK:
        rcu.rcu_read_unlock(cpu)
    elif code == OP_SRCU_LOCK:
        o.result = <u64>srcu.srcu_read_lock(cpu, <srcu.srcu_struct *>o.p)
    elif code == OP_SRCU_UNLOCK:
        srcu.srcu_read_unlock(cpu, <srcu.srcu_struct *>o.p, <int>o.a)
    elif code == OP_SYNCHRONIZE_RCU:
        rcu.synchronize_rcu(cpu)
    elif code == OP_SYNCHRONIZE_SRCU:
        srcu.synchronize_srcu(cpu, <srcu.srcu_struct *>o.p)
    elif code == OP_RAW_READ_SEQCOUNT:
        o.result = seqlock.raw_read_seqcount(cpu, &vma.vm_sequence)
    elif code == OP_SEQCOUNT_RETRY:
        o.result = seqlock.read_seqcount_retry(cpu, &vma.vm_sequence, <u32>o.a)
    elif code == OP_SEQBEGIN:
        o.result = seqlock.read_seqbegin(cpu, &mm.mm_seq)
    elif code == OP_SEQRETRY:
        o.result = seqlock.read_seqretry(cpu, &mm.mm_seq, <u32>o.a)
    elif code == OP_WRITE_SEQLOCK:
        seqlock.write_seqlock(cpu, &mm.mm_seq)
    elif code == OP_WRITE_SEQUNLOCK:
        seqlock.write_sequnlock(cpu, &mm.mm_seq)
    elif code == OP_VMA_HAS_CHANGED:
        o.result = vmas.vma_has_changed(cpu, vma, <u32>o.a)
    elif code == OP_MM_FAULT:
        o.result = memory.handle_mm_fault(cpu, vma, o.a, <u32>o.b)
    elif o.signature == CALL_FAULT:
        o.result = (<fault_function>o.q)(cpu, mm, o.a, <u32>o.b)
    elif o.signature == CALL_MM:
        (<mm_function>o.q)(cpu, mm)
    elif o.signature == CALL_VMA:
        (<vma_function>o.q)(cpu, vma)
    elif o.signature == CALL_SECTION:
        (<section_function>o.q)(cpu, vma, <int>o.a)
    else:
        (<machine_function>o.q)(cpu, <machine *>o.p)


# ---- lines of Python in traces ----

cdef list lines = None


def trace_lines(list to):
    """From now on every call on a vCPU of the check engine appends (file, line, function) to `to`; None = no more."""
    global lines
    lines = to


# Context: GIL held. The Python line that calls, as 1 + its number.
cdef u64 calling_line() except? 0:
    frame = sys._getframe(0)
    lines.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
    return <u64>len(lines)


# ---- calls ----

cdef int stale() except -1:
    raise ReferenceError("this handle belongs to a callback of the strategy that has returned")


# Context: GIL held; given up while the function may wait.
cdef int run(CpuHandle on, kernel_op *o, bint waits) except -1:
    cdef Cpu *cpu = on.cpu
    cdef int got
    if cpu == NULL:
        stale()
    if cpu.engine == NULL:
        if waits:
            with nogil:
                perform(cpu, o)
        else:
            perform(cpu, o)
        return 0
    got = kmm_python_enter(cpu, perform, o, calling_line() if lines is not None else 0)
    if got == -1:
        raise Abandoned
    if got:
        raise RuntimeError("a kernel function was called by a thread that does not drive this CPU")
    return 0


cdef u64 call(CpuHandle on, u32 code, void *p, unsigned long a=0, unsigned long b=0, bint waits=False) except? 0xdead1:
    cdef kernel_op o
    o.code = code
    o.p = p
    o.a = a
    o.b = b
    o.result = 0
    run(on, &o, waits)
    return o.result


# Context: GIL held. An argument's handle is of this callback, and of this CPU.
cdef inline int same(CpuHandle cpu, CpuHandle on) except -1:
    if cpu.cpu == NULL or on is not cpu:
        if cpu.cpu == NULL or on.cpu == NULL:
            stale()
        raise RuntimeError("the handles belong to different callbacks")
    return 0


# ---- what is held ----

cdef int hold(CpuHandle on, u32 kind, void *lock, long index=0) except -1:
    cdef held_locks *h = on.held
    if h.n == MAX_HELD:
        raise RuntimeError(f"more than {MAX_HELD} locks held")
    h.locks[h.n].kind = kind
    h.locks[h.n].lock = lock
    h.locks[h.n].index = index
    h.n += 1
    return 0


# Context: any; the Cpu's own. False: it does not hold that.
cdef bint unhold(held_locks *h, u32 kind, void *lock, long index) noexcept nogil:
    cdef u32 i = h.n
    while i:
        i -= 1
        if h.locks[i].kind == kind and h.locks[i].lock == lock and h.locks[i].index == index:
            h.n -= 1
            while i < h.n:
                h.locks[i] = h.locks[i + 1]
                i += 1
            return True
    return False


cdef int give_back(CpuHandle on, u32 kind, void *lock, str what, long index=0) except -1:
    if on.cpu == NULL:
        stale()
    if not unhold(on.held, kind, lock, index):
        raise RuntimeError(f"{what} on CPU {on.cpu.id}, which does not hold it")
    return 0


cdef str held_words(held_locks *h, u32 n):
    cdef list words = []
    cdef u32 i
    for i in range(n, h.n):
        if h.locks[i].kind == HELD_MMAP_READ or h.locks[i].kind == HELD_MMAP_WRITE:
            words.append(f"mmap_sem of address space {(<mm_struct *>h.locks[i].lock).id} for "
                         + ("reading" if h.locks[i].kind == HELD_MMAP_READ else "writing"))
        elif h.locks[i].kind == HELD_MM_SEQ:
            words.append(f"mm_seq of address space {(<mm_struct *>h.locks[i].lock).id}")
        else:
            words.append("an RCU read section" if h.locks[i].kind == HELD_RCU else "an SRCU read section")
    return ", ".join(words)


cdef void release_held(Cpu *cpu, held_locks *h, u32 n) noexcept nogil:
    cdef held_lock *x
    while h.n > n:
        h.n -= 1
        x = &h.locks[h.n]
        if x.kind == HELD_MMAP_READ:
            rwsem.up_read(cpu, &(<mm_struct *>x.lock).mmap_sem)
        elif x.kind == HELD_MMAP_WRITE:
            rwsem.up_write(cpu, &(<mm_struct *>x.lock).mmap_sem)
        elif x.kind == HELD_MM_SEQ:
            seqlock.write_sequnlock(cpu, &(<mm_struct *>x.lock).mm_seq)
        elif x.kind == HELD_RCU:
            rcu.rcu_read_unlock(cpu)
        else:
            srcu.srcu_read_unlock(cpu, <srcu.srcu_struct *>x.lock, <int>x.index)


cdef bint holds_mmap_write(held_locks *h, mm_struct *mm) noexcept nogil:
    cdef u32 i
    for i in range(h.n):
        if h.locks[i].kind == HELD_MMAP_WRITE and h.locks[i].lock == mm:
            return True
    return False


cdef void take_mmap_write(Cpu *cpu, held_locks *h, mm_struct *mm) noexcept nogil:
    rwsem.down_write(cpu, &mm.mmap_sem)
    if h.n < MAX_HELD:
        h.locks[h.n].kind = HELD_MMAP_WRITE
        h.locks[h.n].lock = mm
        h.locks[h.n].index = 0
        h.n += 1


# ---- handles ----

@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class CpuHandle:
    """The CPU that runs a callback; first argument of every function here. Ends with the callback."""

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def id(self):
        """Number of the CPU."""
        if self.cpu == NULL:
            stale()
        return self.cpu.id

    def __repr__(self):
        return "<CpuHandle, over>" if self.cpu == NULL else f"<CpuHandle {self.cpu.id}>"


cdef CpuHandle cpu_handle(Cpu *cpu, held_locks *held, dict counters):
    cdef CpuHandle h = CpuHandle.__new__(CpuHandle)
    h.cpu = cpu
    h.held = held
    h.counters = counters
    h.fallbacks = 0
    return h


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class MmHandle:
    """An address space (struct mm_struct). Every attribute is read as the kernel would, with READ_ONCE()."""

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def id(self):
        """Number of the address space; for messages."""
        if self.on.cpu == NULL:
            stale()
        return self.mm.id

    @property
    def page_size(self):
        """Bytes of a page."""
        if self.on.cpu == NULL:
            stale()
        return <unsigned long>1 << self.mm.arch.page_shift

    @property
    def map_count(self):
        """How many VMAs there are."""
        return call(self.on, OP_READ_32, &self.mm.map_count)

    @property
    def strategy_data(self):
        """The strategy's own word, 64 bits, 0 at first. Assignment is WRITE_ONCE()."""
        return call(self.on, OP_READ, &self.mm.strategy_data)

    @strategy_data.setter
    def strategy_data(self, unsigned long value):
        call(self.on, OP_WRITE, &self.mm.strategy_data, value)

    def __eq__(self, other):
        return isinstance(other, MmHandle) and (<MmHandle>other).mm == self.mm

    def __hash__(self):
        return hash(<size_t>self.mm)

    def __repr__(self):
        return "<MmHandle, over>" if self.on.cpu == NULL else f"<MmHandle of address space {self.mm.id}>"


cdef MmHandle mm_handle(CpuHandle on, mm_struct *mm):
    cdef MmHandle h = MmHandle.__new__(MmHandle)
    h.on = on
    h.mm = mm
    return h


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class VmaHandle:
    """A mapping (struct vm_area_struct). Every attribute is one READ_ONCE(): two of them may not belong together."""

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def vm_start(self):
        """First address."""
        return call(self.on, OP_READ, &self.vma.vm_start)

    @property
    def vm_end(self):
        """The address after the last."""
        return call(self.on, OP_READ, &self.vma.vm_end)

    @property
    def vm_flags(self):
        """``VM_`` flags."""
        return call(self.on, OP_READ, &self.vma.vm_flags)

    @property
    def vm_pgoff(self):
        """Page offset of vm_start in the file, or in the anonymous range."""
        return call(self.on, OP_READ, &self.vma.vm_pgoff)

    @property
    def vm_mm(self):
        """The address space that it belongs to."""
        if self.on.cpu == NULL:
            stale()
        return mm_handle(self.on, <mm_struct *><size_t>call(self.on, OP_READ, &self.vma.vm_mm))

    @property
    def anon_vma(self):
        """A number that is 0 while the VMA has no anon_vma."""
        return call(self.on, OP_READ, &self.vma.anon_vma)

    @property
    def vm_file(self):
        """A number that is 0 when no file is mapped."""
        return call(self.on, OP_READ, &self.vma.vm_file)

    @property
    def vm_sequence(self):
        """The sequence count, as spf_vma_write_begin() and _end() keep it: odd parts are writers (SPF_WRITER_MASK)."""
        return call(self.on, OP_READ_32, &self.vma.vm_sequence.sequence)

    @property
    def detached(self):
        """It is not in the tree any more (RB_EMPTY_NODE)."""
        return bool(call(self.on, OP_EMPTY_NODE, self.vma))

    @property
    def strategy_data(self):
        """The strategy's own word, 64 bits, 0 in a new VMA. Assignment is WRITE_ONCE()."""
        return call(self.on, OP_READ, &self.vma.strategy_data)

    @strategy_data.setter
    def strategy_data(self, unsigned long value):
        call(self.on, OP_WRITE, &self.vma.strategy_data, value)

    def __eq__(self, other):
        return isinstance(other, VmaHandle) and (<VmaHandle>other).vma == self.vma

    def __hash__(self):
        return hash(<size_t>self.vma)

    def __repr__(self):
        return "<VmaHandle, over>" if self.on.cpu == NULL else "<VmaHandle>"


cdef VmaHandle vma_handle(CpuHandle on, vm_area_struct *vma):
    cdef VmaHandle h = VmaHandle.__new__(VmaHandle)
    h.on = on
    h.vma = vma
    h.freed = 0
    return h


@cython.final
@cython.freelist(4)
@cython.no_gc
cdef class MachineRef:
    """The machine, for quiesce(). Ends with the callback."""

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def nr_cpus(self):
        """How many CPUs it has."""
        if self.on.cpu == NULL:
            stale()
        return self.m.nr_cpus


cdef MachineRef machine_ref(CpuHandle on, machine *m):
    cdef MachineRef h = MachineRef.__new__(MachineRef)
    h.on = on
    h.m = m
    return h


# ---- functions ----

def count(CpuHandle cpu not None, str name not None):
    """Add one to a counter of the strategy. KeyError for a name that is not in its ``counters``."""
    if cpu.cpu == NULL:
        stale()
    index = cpu.counters.get(name)
    if index is None:
        raise KeyError(f"no counter {name!r}; the strategy has {', '.join(cpu.counters)}")
    count_strategy(cpu.cpu, <u32>index)


def find_vma(CpuHandle cpu not None, MmHandle mm not None, unsigned long address):
    """The first VMA that ends above `address`, or None. mmap_sem must be held."""
    cdef kernel_op o
    same(cpu, mm.on)
    o.code = OP_FIND_VMA
    o.p = mm.mm
    o.a = address
    run(cpu, &o, False)
    return vma_handle(cpu, <vm_area_struct *>o.q) if o.q != NULL else None


def find_vma_srcu(CpuHandle cpu not None, MmHandle mm not None, unsigned long address):
    """The same without mmap_sem, inside of an SRCU section; for strategies whose tree changes bump mm_seq
    (spf_tree_write_begin)."""
    cdef kernel_op o
    same(cpu, mm.on)
    o.code = OP_FIND_VMA_SRCU
    o.p = mm.mm
    o.a = address
    run(cpu, &o, True)
    return vma_handle(cpu, <vm_area_struct *>o.q) if o.q != NULL else None


def mmap_read_lock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for reading; may sleep."""
    same(cpu, mm.on)
    if cpu.cpu.engine != NULL or not call(cpu, OP_DOWN_READ_TRYLOCK, mm.mm):
        call(cpu, OP_DOWN_READ, mm.mm, 0, 0, True)
    hold(cpu, HELD_MMAP_READ, mm.mm)


def mmap_read_trylock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for reading if that needs no waiting: True = it is taken."""
    same(cpu, mm.on)
    if not call(cpu, OP_DOWN_READ_TRYLOCK, mm.mm):
        return False
    hold(cpu, HELD_MMAP_READ, mm.mm)
    return True


def mmap_read_unlock(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MMAP_READ, mm.mm, "mmap_read_unlock()")
    call(cpu, OP_UP_READ, mm.mm)


def down_write(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for writing; may sleep. What a strategy's mmap_write_lock() does in the end."""
    same(cpu, mm.on)
    call(cpu, OP_DOWN_WRITE, mm.mm, 0, 0, True)
    hold(cpu, HELD_MMAP_WRITE, mm.mm)


def down_write_trylock(CpuHandle cpu not None, MmHandle mm not None):
    """Take mmap_sem for writing if that needs no waiting: True = it is taken."""
    same(cpu, mm.on)
    if not call(cpu, OP_DOWN_WRITE_TRYLOCK, mm.mm):
        return False
    hold(cpu, HELD_MMAP_WRITE, mm.mm)
    return True


def up_write(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MMAP_WRITE, mm.mm, "up_write()")
    call(cpu, OP_UP_WRITE, mm.mm)


def rcu_read_lock(CpuHandle cpu not None):
    """Enter an RCU read section. No sleeping inside."""
    call(cpu, OP_RCU_LOCK, NULL)
    hold(cpu, HELD_RCU, NULL)


def rcu_read_unlock(CpuHandle cpu not None):
    """The reverse."""
    give_back(cpu, HELD_RCU, NULL, "rcu_read_unlock()")
    call(cpu, OP_RCU_UNLOCK, NULL)


def srcu_read_lock(CpuHandle cpu not None):
    """Enter a read section of vma_srcu, after which spf_free_vma() frees. Returns what srcu_read_unlock() wants."""
    cdef void *ssp
    cdef long index
    if cpu.cpu == NULL:
        stale()
    ssp = &machine_of(cpu.cpu).vma_srcu
    index = <long>call(cpu, OP_SRCU_LOCK, ssp)
    hold(cpu, HELD_SRCU, ssp, index)
    return index


def srcu_read_unlock(CpuHandle cpu not None, long index):
    """The reverse."""
    cdef void *ssp
    if cpu.cpu == NULL:
        stale()
    ssp = &machine_of(cpu.cpu).vma_srcu
    give_back(cpu, HELD_SRCU, ssp, "srcu_read_unlock()", index)
    call(cpu, OP_SRCU_UNLOCK, ssp, <unsigned long>index)


def synchronize_rcu(CpuHandle cpu not None):
    """Wait for every RCU read section that has begun. Not inside of one."""
    call(cpu, OP_SYNCHRONIZE_RCU, NULL, 0, 0, True)


def synchronize_srcu(CpuHandle cpu not None):
    """Wait for every read section of vma_srcu that has begun. Not inside of one."""
    if cpu.cpu == NULL:
        stale()
    call(cpu, OP_SYNCHRONIZE_SRCU, &machine_of(cpu.cpu).vma_srcu, 0, 0, True)


def access_error(unsigned long vm_flags, unsigned int flags):
    """Is an access with ``FAULT_FLAG_`` `flags` one that a VMA with `vm_flags` does not allow?"""
    return memory.access_error(vm_flags, flags)


def handle_mm_fault(CpuHandle cpu not None, VmaHandle vma not None, unsigned long address, unsigned int flags):
    """Resolve a fault inside of `vma`, whose access was checked: ``VM_FAULT_`` bits. mmap_sem, or whatever the strategy
    keeps writers out with, must be held; may sleep. Without mmap_sem the VMA needs its anon_vma already."""
    same(cpu, vma.on)
    return call(cpu, OP_MM_FAULT, vma.vma, address, flags, True)


def raw_read_seqcount(CpuHandle cpu not None, VmaHandle vma not None):
    """vm_sequence, and a read barrier."""
    same(cpu, vma.on)
    return call(cpu, OP_RAW_READ_SEQCOUNT, vma.vma)


def read_seqcount_retry(CpuHandle cpu not None, VmaHandle vma not None, unsigned int start):
    """After a read barrier: is vm_sequence another than `start`?"""
    same(cpu, vma.on)
    return bool(call(cpu, OP_SEQCOUNT_RETRY, vma.vma, start))


def vma_has_changed(CpuHandle cpu not None, VmaHandle vma not None, unsigned int sequence):
    """Has the VMA left the tree, or its vm_sequence changed? With read barriers on both sides."""
    same(cpu, vma.on)
    return bool(call(cpu, OP_VMA_HAS_CHANGED, vma.vma, sequence))


def read_seqbegin(CpuHandle cpu not None, MmHandle mm not None):
    """mm_seq, when no writer is inside; waits for that."""
    same(cpu, mm.on)
    return call(cpu, OP_SEQBEGIN, mm.mm, 0, 0, True)


def read_seqretry(CpuHandle cpu not None, MmHandle mm not None, unsigned int start):
    """After a read barrier: has the tree changed since read_seqbegin() returned `start`?"""
    same(cpu, mm.on)
    return bool(call(cpu, OP_SEQRETRY, mm.mm, start))


def write_seqlock(CpuHandle cpu not None, MmHandle mm not None):
    """Begin to change what mm_seq is for."""
    same(cpu, mm.on)
    call(cpu, OP_WRITE_SEQLOCK, mm.mm, 0, 0, True)
    hold(cpu, HELD_MM_SEQ, mm.mm)


def write_sequnlock(CpuHandle cpu not None, MmHandle mm not None):
    """The reverse."""
    same(cpu, mm.on)
    give_back(cpu, HELD_MM_SEQ, mm.mm, "write_sequnlock()")
    call(cpu, OP_WRITE_SEQUNLOCK, mm.mm)


# ---- the strategy's word: atomics ----

# Context: GIL held. Where strategy_data of an MmHandle or VmaHandle of this callback lies.
cdef void *word_of(CpuHandle cpu, object x) except NULL:
    if isinstance(x, VmaHandle):
        same(cpu, (<VmaHandle>x).on)
        return &(<VmaHandle>x).vma.strategy_data
    if isinstance(x, MmHandle):
        same(cpu, (<MmHandle>x).on)
        return &(<MmHandle>x).mm.strategy_data
    raise TypeError(f"expected an MmHandle or a VmaHandle, not {type(x).__name__}")


def cmpxchg(CpuHandle cpu not None, x, unsigned long old, unsigned long new):
    """Put `new` into x.strategy_data if it is `old`: what it was. A full barrier if it did."""
    return call(cpu, OP_CMPXCHG, word_of(cpu, x), old, new)


def xchg(CpuHandle cpu not None, x, unsigned long new):
    """Put `new` into x.strategy_data: what it was. A full barrier."""
    return call(cpu, OP_XCHG, word_of(cpu, x), new)


def atomic_add_return(CpuHandle cpu not None, x, long n):
    """Add `n` to x.strategy_data, modulo 2**64: what it is now. A full barrier."""
    return call(cpu, OP_ADD_RETURN, word_of(cpu, x), <unsigned long>n)


def smp_load_acquire(CpuHandle cpu not None, x):
    """x.strategy_data, read before everything that comes after."""
    return call(cpu, OP_ACQUIRE, word_of(cpu, x))


def smp_store_release(CpuHandle cpu not None, x, unsigned long value):
    """Put `value` into x.strategy_data after everything that came before."""
    call(cpu, OP_RELEASE, word_of(cpu, x), value)


def await_equal(CpuHandle cpu not None, x, unsigned int mask, unsigned int value):
    """Wait until x.strategy_data & mask == value, with acquire order; returns the word. No kernel function: stands in
    for wait_var_event()."""
    return call(cpu, OP_AWAIT, word_of(cpu, x), <unsigned long>mask << 32 | value, 0, True)


def smp_mb(CpuHandle cpu not None):
    """A full memory barrier."""
    call(cpu, OP_MB, NULL)


def smp_rmb(CpuHandle cpu not None):
    """Loads before it come before loads after it."""
    call(cpu, OP_RMB, NULL)


def smp_wmb(CpuHandle cpu not None):
    """Stores before it come before stores after it."""
    call(cpu, OP_WMB, NULL)


# ---- compiled functions that may stand in for methods ----

# By signature: what it takes after the Cpu, and how many numbers after that.
cdef tuple WANTED = ((MmHandle, 2), (MmHandle, 0), (VmaHandle, 0), (VmaHandle, 1), (MachineRef, 0))


@cython.final
cdef class KernelFunction:
    """A compiled function. Called with handles it runs; named in the class body of a strategy (``free_vma =
    spf_free_vma``) it becomes the member of the table, and no Python runs there."""

    def __init__(self):
        raise TypeError("these are made by pykmm")

    def __call__(self, CpuHandle cpu not None, x, *args):
        cdef kernel_op o
        o.code = OP_CALL
        o.signature = self.signature
        o.q = self.pointer
        o.a = o.b = o.result = 0
        cdef tuple wanted = <tuple>WANTED[self.signature]
        if not isinstance(x, wanted[0]) or len(args) != wanted[1]:
            raise TypeError(f"{self.name}() takes a CpuHandle, a {wanted[0].__name__}"
                            + ("" if wanted[1] == 0 else f" and {wanted[1]} number{'s' if wanted[1] > 1 else ''}"))
        if self.signature == CALL_MM or self.signature == CALL_FAULT:
            same(cpu, (<MmHandle>x).on)
            o.p = (<MmHandle>x).mm
        elif self.signature == CALL_MACHINE:
            same(cpu, (<MachineRef>x).on)
            o.p = (<MachineRef>x).m
        else:
            same(cpu, (<VmaHandle>x).on)
            o.p = (<VmaHandle>x).vma
            if self.member == "free_vma":
                if (<VmaHandle>x).freed:
                    raise RuntimeError(f"{self.name}(): this VMA has been freed already")
                (<VmaHandle>x).freed = 1
        if args:
            o.a = args[0]
        if len(args) > 1:
            o.b = args[1]
        if self.signature == CALL_FAULT:
            cpu.fallbacks += 1
        run(cpu, &o, True)
        return o.result if self.signature == CALL_FAULT else None

    def __repr__(self):
        return f"<kernel function {self.name}()>"


cdef KernelFunction function(str name, str member, u32 signature, void *pointer):
    cdef KernelFunction f = KernelFunction.__new__(KernelFunction)
    f.name = name
    f.member = member
    f.signature = signature
    f.pointer = pointer
    return f


# Context: RCU callback: process, IRQs on.
cdef void free_vma_callback(Cpu *cpu, rcu_head *head) noexcept nogil:
    vmas.__vm_area_free(cpu, vmas.vma_of_rcu(head))


# Context: as strategy_ops.free_vma. vm_area_free() of 6.4: whoever found the VMA under rcu_read_lock() may look at it.
cdef void rcu_free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    rcu.call_rcu(cpu, &vma.vm_rcu_head, free_vma_callback)


# Context: as strategy_ops.quiesce.
cdef void rcu_quiesce(Cpu *cpu, machine *m) noexcept nogil:
    rcu.rcu_barrier(cpu)


handle_fault_mmap_sem = function("handle_fault_mmap_sem", "", CALL_FAULT, <void *>fault.handle_fault_mmap_sem)
spf_vma_write_begin = function("spf_vma_write_begin", "vma_write_begin", CALL_SECTION,
                               <void *>speculative.spf_vma_write_begin)
spf_vma_write_end = function("spf_vma_write_end", "vma_write_end", CALL_VMA, <void *>speculative.spf_vma_write_end)
spf_tree_write_begin = function("spf_tree_write_begin", "tree_write_begin", CALL_MM,
                                <void *>speculative.spf_tree_write_begin)
spf_tree_write_end = function("spf_tree_write_end", "tree_write_end", CALL_MM, <void *>speculative.spf_tree_write_end)
spf_free_vma = function("spf_free_vma", "free_vma", CALL_VMA, <void *>speculative.spf_free_vma)
spf_quiesce = function("spf_quiesce", "quiesce", CALL_MACHINE, <void *>speculative.spf_quiesce)
vm_area_free = function("vm_area_free", "free_vma", CALL_VMA, <void *>vmas.__vm_area_free)
vm_area_free_rcu = function("vm_area_free_rcu", "free_vma", CALL_VMA, <void *>rcu_free_vma)
rcu_barrier = function("rcu_barrier", "quiesce", CALL_MACHINE, <void *>rcu_quiesce)

SPF_WRITER_MASK = speculative.SPF_WRITER_MASK
