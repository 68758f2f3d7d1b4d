# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (an interpreter: every index is checked when the program is built)
"""Small programs for the check engine (no kernel file): litmus tests and counting examples, run without Python.

A program has up to 16 threads of instructions over 16 registers each, and a few hundred shared words. Each
instruction is one primitive of kernel/atomic, spinlock, rwsem, or a jump.
"""
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from pykmm_ext.engine.check cimport (
    CHECK_ASSERTION, KMM_DOWN_READ, KMM_DOWN_READ_TRYLOCK, KMM_DOWN_WRITE, KMM_DOWN_WRITE_TRYLOCK,
    KMM_DOWNGRADE_WRITE, KMM_UP_READ, KMM_UP_WRITE, Program, check_choose, check_fail, check_plain, check_program,
    kmm_lock_op,
)
from pykmm_ext.machine.cpu cimport Cpu, u32, u64

cdef extern from *:
    """
    #include "kmm/check.h"
    #include "kmm/irq.h"
    #include "kmm/spinlock.h"
    static inline int lit_lock(Cpu *cpu, void *lock, enum kmm_lock_op op) { return cpu->engine->lock(cpu, lock, op); }
    static inline u64 lit_load(Cpu *cpu, u64 *p, int order, u32 dep)
    { return cpu->engine->load_dep(cpu, p, 8, order, dep); }
    static inline void lit_store(Cpu *cpu, u64 *p, u64 v, int order) { cpu->engine->store(cpu, p, 8, v, order); }
    static inline u64 lit_rmw(Cpu *cpu, u64 *p, int op, u64 a, u64 b, int order)
    { return cpu->engine->rmw(cpu, p, 8, op, a, b, order); }
    static inline void lit_fence(Cpu *cpu, int kind) { cpu->engine->fence(cpu, kind); }
    static inline u64 lit_await(Cpu *cpu, u64 *p, kmm_pred pred, u64 arg)
    { return cpu->engine->await(cpu, p, 8, pred, arg); }
    static inline u32 lit_last_load(Cpu *cpu) { return cpu->engine->last_load(cpu); }
    static inline void lit_ipi(Cpu *cpu, Cpu *target, kmm_ipi_func func, void *info)
    { cpu->engine->ipi_send(cpu, target, func, info); cpu->engine->ipi_wait(cpu); }
    static int lit_at_least(u64 v, u64 arg) { return v >= arg; }
    static int lit_below(u64 v, u64 arg) { return v < arg; }
    """
    int lit_lock(Cpu *cpu, void *lock, kmm_lock_op op) nogil
    u64 lit_load(Cpu *cpu, u64 *p, int order, u32 dep) nogil
    void lit_store(Cpu *cpu, u64 *p, u64 v, int order) nogil
    u64 lit_rmw(Cpu *cpu, u64 *p, int op, u64 a, u64 b, int order) nogil
    void lit_fence(Cpu *cpu, int kind) nogil
    u64 lit_await(Cpu *cpu, u64 *p, int (*pred)(u64, u64) noexcept nogil, u64 arg) nogil
    u32 lit_last_load(Cpu *cpu) nogil
    void lit_ipi(Cpu *cpu, Cpu *target, void (*func)(Cpu *, void *) noexcept nogil, void *info) nogil
    void local_irq_disable(Cpu *cpu) nogil
    void local_irq_enable(Cpu *cpu) nogil
    int lit_at_least(u64 v, u64 arg) nogil
    int lit_below(u64 v, u64 arg) nogil
    ctypedef struct spinlock_t:
        pass
    void spin_lock(Cpu *cpu, spinlock_t *lock) nogil
    bint spin_trylock(Cpu *cpu, spinlock_t *lock) nogil
    void spin_unlock(Cpu *cpu, spinlock_t *lock) nogil

cdef extern from "kmm/atomic.h" nogil:
    enum:
        KMM_RELAXED, KMM_ACQUIRE, KMM_RELEASE, KMM_SEQ_CST, KMM_POSTED
        KMM_XCHG, KMM_CMPXCHG, KMM_ADD, KMM_AND, KMM_OR
        KMM_MB, KMM_RMB, KMM_WMB, KMM_LWSYNC, KMM_MB_LIGHT, KMM_MB_HEAVY
    int kmm_is_equal(u64 v, u64 arg)
    int kmm_is_not_equal(u64 v, u64 arg)

cdef extern from "kmm/wait.h" nogil:
    pass

cdef enum:
    REGISTERS = 16
    WORDS = 512
    MAX_THREADS = 16
    MAX_CODE = 256

cdef enum opcode:
    OP_LOAD, OP_STORE, OP_RMW, OP_FENCE, OP_AWAIT_EQ, OP_AWAIT_NE, OP_AWAIT_GE, OP_LOCK, OP_TRYLOCK, OP_UNLOCK
    OP_DOWN_READ, OP_UP_READ, OP_DOWN_WRITE, OP_UP_WRITE, OP_SET, OP_ADD, OP_MUL, OP_MOD, OP_JUMP_IF, OP_JUMP_UNLESS
    OP_JUMP_EQ, OP_ASSERT_EQ, OP_PLAIN_LOAD, OP_PLAIN_STORE, OP_CHOOSE, OP_END
    OP_DOWN_READ_TRYLOCK, OP_DOWN_WRITE_TRYLOCK, OP_DOWNGRADE_WRITE, OP_IRQ_OFF, OP_IRQ_ON, OP_IPI, OP_AWAIT_LT

#: Instructions by name; see Litmus for the operands.
OPCODES = {
    "load": OP_LOAD, "store": OP_STORE, "rmw": OP_RMW, "fence": OP_FENCE, "await_eq": OP_AWAIT_EQ,
    "await_ne": OP_AWAIT_NE, "await_ge": OP_AWAIT_GE, "lock": OP_LOCK, "trylock": OP_TRYLOCK, "unlock": OP_UNLOCK,
    "down_read": OP_DOWN_READ, "up_read": OP_UP_READ, "down_write": OP_DOWN_WRITE, "up_write": OP_UP_WRITE,
    "set": OP_SET, "add": OP_ADD, "mul": OP_MUL, "mod": OP_MOD, "jump_if": OP_JUMP_IF,
    "jump_unless": OP_JUMP_UNLESS, "jump_eq": OP_JUMP_EQ, "assert_eq": OP_ASSERT_EQ, "plain_load": OP_PLAIN_LOAD,
    "plain_store": OP_PLAIN_STORE, "choose": OP_CHOOSE, "end": OP_END,
    "down_read_trylock": OP_DOWN_READ_TRYLOCK, "down_write_trylock": OP_DOWN_WRITE_TRYLOCK,
    "downgrade_write": OP_DOWNGRADE_WRITE, "irq_disable": OP_IRQ_OFF, "irq_enable": OP_IRQ_ON, "ipi": OP_IPI,
    "await_lt": OP_AWAIT_LT,
}
#: Orders, read-modify-writes and fences by name.
ORDERS = {"relaxed": KMM_RELAXED, "acquire": KMM_ACQUIRE, "release": KMM_RELEASE, "seq_cst": KMM_SEQ_CST,
          "posted": KMM_POSTED}
RMWS = {"xchg": KMM_XCHG, "cmpxchg": KMM_CMPXCHG, "add": KMM_ADD, "and": KMM_AND, "or": KMM_OR}
FENCES = {"mb": KMM_MB, "rmb": KMM_RMB, "wmb": KMM_WMB, "lwsync": KMM_LWSYNC, "mb_light": KMM_MB_LIGHT,
          "mb_heavy": KMM_MB_HEAVY}

# Operands that are registers carry this bit; all others are numbers.
cdef enum:
    REG = 1 << 30

cdef struct insn:
    u32 op
    u32 reg             # result, or the register looked at
    u32 addr            # word, or REG | register whose value is added to `base`
    u32 base
    u64 a, b            # numbers, or with a_reg, b_reg: registers
    u32 a_reg, b_reg
    u32 sub             # order, fence, target of a jump
    u32 rmw
    u32 dep             # 1 + register whose last load the address depends on, 0 = none


cdef struct thread:
    u32 length
    u64 regs[REGISTERS]
    u32 loaded[REGISTERS]       # number of the load that the register's value came from
    insn code[MAX_CODE]


cdef struct litmus:
    u64 words[WORDS]
    u64 initial[WORDS]
    u32 nwords
    u32 nthreads
    u32 nobserve
    u32 observe_thread[8]
    u32 observe_reg[8]
    Cpu cpus[MAX_THREADS]
    thread threads[MAX_THREADS]


cdef inline u64 operand(thread *t, u64 v, u32 is_reg) noexcept nogil:
    return t.regs[v] if is_reg else v


cdef inline u64 *address(litmus *l, thread *t, insn *i) noexcept nogil:
    return &l.words[(i.base + t.regs[i.addr & (REGISTERS - 1)]) % WORDS if i.addr & REG else i.addr]


# Context: IPI handler. *info = a register of the target, which its thread looks at with IRQs off only.
cdef void litmus_handler(Cpu *target, void *info) noexcept nogil:
    (<u64 *>info)[0] += 1


# Context: vCPU.
cdef void litmus_vcpu(void *priv, Cpu *cpu, u32 id) noexcept nogil:
    cdef litmus *l = <litmus *>priv
    cdef thread *t = &l.threads[id]
    cdef insn *i
    cdef u64 *p
    cdef u64 v
    cdef u32 pc = 0
    while pc < t.length:
        i = &t.code[pc]
        pc += 1
        if i.op == OP_LOAD:
            t.regs[i.reg] = lit_load(cpu, address(l, t, i), i.sub, t.loaded[i.dep - 1] if i.dep else 0)
            t.loaded[i.reg] = lit_last_load(cpu)
        elif i.op == OP_STORE:
            lit_store(cpu, address(l, t, i), operand(t, i.a, i.a_reg), i.sub)
        elif i.op == OP_RMW:
            v = lit_rmw(cpu, address(l, t, i), i.rmw, operand(t, i.a, i.a_reg), operand(t, i.b, i.b_reg), i.sub)
            t.regs[i.reg] = v
        elif i.op == OP_FENCE:
            lit_fence(cpu, i.sub)
        elif i.op == OP_AWAIT_EQ:
            t.regs[i.reg] = lit_await(cpu, address(l, t, i), kmm_is_equal, operand(t, i.a, i.a_reg))
        elif i.op == OP_AWAIT_NE:
            t.regs[i.reg] = lit_await(cpu, address(l, t, i), kmm_is_not_equal, operand(t, i.a, i.a_reg))
        elif i.op == OP_AWAIT_GE:
            t.regs[i.reg] = lit_await(cpu, address(l, t, i), lit_at_least, operand(t, i.a, i.a_reg))
        elif i.op == OP_AWAIT_LT:
            t.regs[i.reg] = lit_await(cpu, address(l, t, i), lit_below, operand(t, i.a, i.a_reg))
        elif i.op == OP_LOCK:
            spin_lock(cpu, <spinlock_t *>address(l, t, i))
        elif i.op == OP_TRYLOCK:
            t.regs[i.reg] = spin_trylock(cpu, <spinlock_t *>address(l, t, i))
        elif i.op == OP_UNLOCK:
            spin_unlock(cpu, <spinlock_t *>address(l, t, i))
        elif i.op == OP_DOWN_READ:
            lit_lock(cpu, address(l, t, i), KMM_DOWN_READ)
        elif i.op == OP_UP_READ:
            lit_lock(cpu, address(l, t, i), KMM_UP_READ)
        elif i.op == OP_DOWN_WRITE:
            lit_lock(cpu, address(l, t, i), KMM_DOWN_WRITE)
        elif i.op == OP_UP_WRITE:
            lit_lock(cpu, address(l, t, i), KMM_UP_WRITE)
        elif i.op == OP_DOWN_READ_TRYLOCK:
            t.regs[i.reg] = <u64>lit_lock(cpu, address(l, t, i), KMM_DOWN_READ_TRYLOCK)
        elif i.op == OP_DOWN_WRITE_TRYLOCK:
            t.regs[i.reg] = <u64>lit_lock(cpu, address(l, t, i), KMM_DOWN_WRITE_TRYLOCK)
        elif i.op == OP_DOWNGRADE_WRITE:
            lit_lock(cpu, address(l, t, i), KMM_DOWNGRADE_WRITE)
        elif i.op == OP_IRQ_OFF:
            local_irq_disable(cpu)
        elif i.op == OP_IRQ_ON:
            local_irq_enable(cpu)
        elif i.op == OP_IPI:
            lit_ipi(cpu, &l.cpus[i.a % l.nthreads], litmus_handler, &l.threads[i.a % l.nthreads].regs[i.reg])
        elif i.op == OP_SET:
            t.regs[i.reg] = operand(t, i.a, i.a_reg)
        elif i.op == OP_ADD:
            t.regs[i.reg] += operand(t, i.a, i.a_reg)
        elif i.op == OP_MUL:
            t.regs[i.reg] *= operand(t, i.a, i.a_reg)
        elif i.op == OP_MOD:
            v = operand(t, i.a, i.a_reg)
            t.regs[i.reg] = t.regs[i.reg] % v if v else 0
        elif i.op == OP_JUMP_IF:
            if t.regs[i.reg]:
                pc = i.sub
        elif i.op == OP_JUMP_UNLESS:
            if not t.regs[i.reg]:
                pc = i.sub
        elif i.op == OP_JUMP_EQ:
            if t.regs[i.reg] == operand(t, i.a, i.a_reg):
                pc = i.sub
        elif i.op == OP_ASSERT_EQ:
            if t.regs[i.reg] != operand(t, i.a, i.a_reg):
                check_fail(cpu, CHECK_ASSERTION, b"an assertion of the program does not hold")
                return
        elif i.op == OP_PLAIN_LOAD:
            p = address(l, t, i)
            check_plain(cpu, p, 8, 0)
            t.regs[i.reg] = p[0]
        elif i.op == OP_PLAIN_STORE:
            p = address(l, t, i)
            check_plain(cpu, p, 8, 1)
            p[0] = operand(t, i.a, i.a_reg)
        elif i.op == OP_CHOOSE:
            t.regs[i.reg] = check_choose(cpu, <u32>i.a)
        else:
            return


# Context: no vCPU runs.
cdef int litmus_reset(void *priv) noexcept nogil:
    cdef litmus *l = <litmus *>priv
    cdef u32 i
    memcpy(l.words, l.initial, l.nwords * sizeof(u64))
    for i in range(l.nthreads):
        memset(l.threads[i].regs, 0, sizeof(l.threads[i].regs))
        memset(l.threads[i].loaded, 0, sizeof(l.threads[i].loaded))
        l.cpus[i].irq_disabled = 0
    return 0


# Context: any; what it returns never changes.
cdef Cpu *litmus_cpu(void *priv, u32 id) noexcept nogil:
    return &(<litmus *>priv).cpus[id]


# Context: no vCPU runs, all stores are visible.
cdef u64 litmus_outcome(void *priv) noexcept nogil:
    cdef litmus *l = <litmus *>priv
    cdef u64 h = 0
    cdef u32 i, k
    if l.nobserve:
        for i in range(l.nobserve):
            if l.observe_thread[i] >= MAX_THREADS:
                h = h << 8 | (l.words[l.observe_reg[i]] & 0xff)
            else:
                h = h << 8 | (l.threads[l.observe_thread[i]].regs[l.observe_reg[i]] & 0xff)
        return h
    h = 14695981039346656037ULL
    for i in range(l.nwords):
        h = (h ^ l.words[i]) * 1099511628211ULL
        h ^= h >> 29
    for i in range(l.nthreads):
        for k in range(REGISTERS):
            h = (h ^ l.threads[i].regs[k]) * 1099511628211ULL
            h ^= h >> 29
    return h


cdef void litmus_describe(void *priv, const void *p, char *buf, size_t n) noexcept nogil:
    cdef litmus *l = <litmus *>priv
    cdef size_t at = <size_t>p - <size_t>&l.words[0]
    if <size_t>p >= <size_t>&l.words[0] and at < sizeof(l.words):
        format_word(buf, n, <unsigned>(at // 8))

cdef extern from *:
    """
    #include <stdio.h>
    static void format_word(char *buf, size_t n, unsigned i) { snprintf(buf, n, "word %u", i); }
    """
    void format_word(char *buf, size_t n, unsigned i) nogil


cdef class Litmus(Program):
    """A small program.

    :param threads: per thread a list of instructions, each a dict: "op" (a key of OPCODES) and, by kind, "reg" (a
        register number), "addr" (a word, or ("reg", r, base) for words[base + r]), "a", "b" (a number, or ("reg", r)),
        "order", "rmw", "fence" (names), "to" (target of a jump), "dep" (a register: the address depends on its load).
        "ipi" interrupts thread "a" and waits; its handler adds 1 to that thread's register "reg", which the thread
        may look at with IRQs off only
    :param initial: values of the first words; the rest is 0
    :param words: how many words there are, at most 512
    :param observe: what makes an outcome: up to 8 of (thread, register) or ("word", index), one byte each, first
        highest; empty = a hash of all registers and words
    :param plain: look for data races
    :param open_spinlocks: run the spinlock's own algorithm instead of a blocking primitive

    ValueError: an instruction that does not exist, or a number out of range.
    """
    cdef litmus *l

    def __cinit__(self, threads, *, initial=(), int words=64, observe=(), bint plain=False, bint open_spinlocks=False):
        cdef u32 t, k
        cdef insn *i
        cdef litmus *l
        if not 1 <= len(threads) <= MAX_THREADS:
            raise ValueError(f"1 to {MAX_THREADS} threads, not {len(threads)}")
        if not len(initial) <= words <= WORDS or len(observe) > 8:
            raise ValueError(f"at most {WORDS} words and 8 observed values")
        self.l = l = <litmus *>calloc(1, sizeof(litmus))
        if l == NULL:
            raise MemoryError()
        l.nwords = words
        l.nthreads = <u32>len(threads)
        for k in range(<u32>len(initial)):
            l.initial[k] = initial[k]
        for k in range(<u32>len(observe)):
            thread, reg = observe[k]
            l.observe_thread[k] = MAX_THREADS if thread == "word" else checked(thread, l.nthreads, "thread")
            l.observe_reg[k] = checked(reg, words if thread == "word" else REGISTERS, "register")
        l.nobserve = <u32>len(observe)
        for t in range(l.nthreads):
            l.cpus[t].id = t
            if len(threads[t]) > MAX_CODE:
                raise ValueError(f"at most {MAX_CODE} instructions a thread")
            l.threads[t].length = <u32>len(threads[t])
            for k in range(l.threads[t].length):
                one = threads[t][k]
                i = &l.threads[t].code[k]
                if one["op"] not in OPCODES:
                    raise ValueError(f"unknown instruction {one['op']!r}; known: {', '.join(OPCODES)}")
                i.op = OPCODES[one["op"]]
                i.reg = checked(one.get("reg", 0), REGISTERS, "register")
                addr = one.get("addr", 0)
                if isinstance(addr, tuple):
                    i.addr = REG | <u32>checked(addr[1], REGISTERS, "register")
                    i.base = checked(addr[2], words, "word")
                else:
                    i.addr = checked(addr, words, "word")
                for name in ("a", "b"):
                    value = one.get(name, 0)
                    is_reg = isinstance(value, tuple)
                    if is_reg:
                        value = checked(value[1], REGISTERS, "register")
                    if name == "a":
                        i.a = (<object>value) & 0xffffffffffffffff
                        i.a_reg = is_reg
                    else:
                        i.b = (<object>value) & 0xffffffffffffffff
                        i.b_reg = is_reg
                if "to" in one:
                    i.sub = checked(one["to"], MAX_CODE + 1, "target")
                elif one["op"] == "fence":
                    i.sub = FENCES[one["fence"]]
                else:
                    i.sub = ORDERS[one.get("order", "seq_cst" if one["op"] == "rmw" else "relaxed")]
                if one["op"] == "rmw":
                    i.rmw = RMWS[one["rmw"]]
                if "dep" in one:
                    i.dep = 1 + <u32>checked(one["dep"], REGISTERS, "register")
        self.prog.size = sizeof(check_program)
        self.prog.name = b"litmus"
        self.prog.priv = l
        self.prog.nr_vcpus = l.nthreads
        self.prog.plain = plain
        self.prog.open_spinlocks = open_spinlocks
        self.prog.reset = litmus_reset
        self.prog.cpu = litmus_cpu
        self.prog.vcpu = litmus_vcpu
        self.prog.outcome = litmus_outcome
        self.prog.describe = litmus_describe

    def __dealloc__(self):
        free(self.l)


cdef u32 checked(value, limit, what) except? 0xffffffff:
    if not 0 <= value < limit:
        raise ValueError(f"{what} {value} is not below {limit}")
    return value
