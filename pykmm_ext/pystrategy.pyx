# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for compiling a fault strategy: struct strategy_ops filled with functions that call a Python object.

A member of the table per method that the class defines, none for the others. Each such function takes the GIL, makes
handles (pykmm_ext.pykernel) that end with the call, and begins from a failure, so that nothing that goes wrong looks like
success.

An exception in Python code
    native        is kept in Cpu.py_exception and raised by whoever drives the Cpu, when the call into the machine ends
                  (pykmm_ext.handle); the fault itself ends with VM_FAULT_SIGBUS. What the callback took through
                  pykmm_ext.pykernel is given back. In a writer's or a lifecycle member it also poisons the machine:
                  nobody can know in which state the strategy's protocol is. A poisoned machine calls no Python any more,
                  takes mmap_sem for every change, and can only be closed.
    check engine  is a violation of the execution ("exception"; locks that are left over: "lock-held").

Who runs against whom: several Cpus are inside of Python methods at the same time only as far as the GIL lets them; but it
changes hands at every kernel function that may wait, so an attribute of the strategy object is shared memory, which the
check engine neither sees nor puts back between two executions. Lasting state belongs into strategy_data.

No caller holds the GIL while it waits, except on the check engine, where the scheduler gives it up (kmm/check_thread.h).
"""
cimport cython
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from cpython.ref cimport Py_INCREF, PyObject
from libc.errno cimport ENOMEM

import inspect

from pykmm_ext.engine.check cimport CHECK_EXCEPTION, CHECK_LOCK_HELD, check_fail
from pykmm_ext.handle cimport pykmm_errors
from pykmm_ext.kernel.primitives cimport copy_error
from pykmm_ext.machine.cpu cimport KMM_STRATEGY_COUNTERS, Cpu, count_strategy, u32, unlikely
from pykmm_ext.mm.mm_types cimport (
    VM_FAULT_BADACCESS, VM_FAULT_BADMAP, VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_NOPAGE, VM_FAULT_RETRY,
    VM_FAULT_SIGBUS, machine, machine_of, mm_struct, vm_area_struct, vm_fault_t,
)
from pykmm_ext.mm.speculative cimport spf_free_vma
from pykmm_ext.pykernel cimport (
    CpuHandle, KernelFunction, VmaHandle, cpu_handle, held_locks, held_words, holds_mmap_write, machine_ref, mm_handle,
    release_held, take_mmap_write, vma_handle,
)

from pykmm_ext.kernel.primitives import Abandoned

cdef extern from *:
    """
    #include "kmm/engine.h"
    static inline void *kmm_python_unwind(Cpu *cpu, void *mark) { return cpu->engine->unwind(cpu, mark); }
    static inline void *kmm_poison_of(struct machine *m) { return __atomic_load_n(&m->poison, __ATOMIC_RELAXED); }
    static inline void kmm_poison(struct machine *m, void *error)
    { __atomic_store_n(&m->poison, error, __ATOMIC_RELAXED); }
    """
    void *kmm_python_unwind(Cpu *cpu, void *mark) nogil
    void *kmm_poison_of(machine *m) nogil
    void kmm_poison(machine *m, void *error) nogil

cdef enum:
    ERROR_TEXT = 1200
    MAX_NESTED = 8          # mmap_write_lock() of one Cpu: fork takes two

# Cpu.strategy_count: attempts == successes + retried.
cdef enum:
    ATTEMPTS
    SUCCESSES
    RETRIED
    FIRST_REASON

# What a member takes beside the Cpu, and what it returns.
cdef enum:
    TAKES_FAULT             # mm, address, flags
    TAKES_RANGE             # mm, start, end
    TAKES_MM
    TAKES_VMA
    TAKES_SECTION           # vma, subclass
    TAKES_MACHINE
cdef enum:
    GIVES_NOTHING
    GIVES_FAULT
    GIVES_ERRNO

cdef struct member_t:
    const char *name
    size_t offset           # in strategy_ops
    void *trampoline
    int takes, gives
    bint contained          # after an exception the machine is as if the call had failed

# One call, on the stack of the C function that the mm calls.
cdef struct frame:
    Cpu *cpu
    held_locks *held        # of the Cpu
    void *mark              # engine_ops.unwind()
    const char *kind        # check engine: the violation that this call is
    long result             # negative where the member returns nothing: it has failed
    bint freed              # the VmaHandle was handed to something that frees it
    char text[ERROR_TEXT]


# ---- state by Cpu ----

cdef struct cpu_state:
    held_locks held
    u32 nested
    u32 before[MAX_NESTED]  # held.n when mmap_write_lock() was called

@cython.final
@cython.internal
cdef class CpuState:
    # Everything here: GIL, and the thread that drives the Cpu.
    cdef cpu_state s


cdef cpu_state *state_of(PythonStrategy s, Cpu *cpu) except NULL:
    cdef CpuState state = s.cpus.get(<size_t>cpu)
    if state is None:
        state = s.cpus[<size_t>cpu] = CpuState.__new__(CpuState)
    return &state.s


cdef void python_strategy_reset(PythonStrategy s) noexcept:
    cdef CpuState state
    for state in s.cpus.values():
        state.s.held.n = state.s.nested = 0


# ---- calls ----

# Context: GIL held.
cdef object plugin_error(PythonStrategy s, str text):
    return pykmm_errors().PluginError(f"strategy {s.name!r}: {text}", s.name)


# What handle_fault() may return.
cdef long FAULT_RESULTS = (VM_FAULT_ERROR | VM_FAULT_MAJOR | VM_FAULT_NOPAGE | VM_FAULT_BADMAP | VM_FAULT_BADACCESS)


# Context: GIL held. What a method may return, as a number.
cdef inline long as_result(PythonStrategy s, int m, object value) except? -1:
    cdef int gives = members[m].gives
    cdef int overflow = 0
    cdef long number
    if gives == GIVES_NOTHING:
        if value is None:
            return 0
    elif PyLong_CheckExact(value):
        number = PyLong_AsLongAndOverflow(value, &overflow)
        if not overflow and (not number & ~FAULT_RESULTS if gives == GIVES_FAULT else -4096 < number <= 0):
            return number
    raise nonsense(s, m, value)


cdef object nonsense(PythonStrategy s, int m, object value):
    cdef int gives = members[m].gives
    cdef str what = members[m].name.decode() + "()"
    if gives == GIVES_NOTHING:
        return plugin_error(s, f"{what} returned {value!r}; it has to return None")
    if not isinstance(value, int) or isinstance(value, bool):
        return plugin_error(s, f"{what} returned {value!r}; it has to return an int of "
                            + ("VM_FAULT_ bits, 0 = resolved" if gives == GIVES_FAULT else "0 or a negative errno"))
    if gives == GIVES_ERRNO:
        return plugin_error(s, f"{what} returned {value}; it has to return 0 or a negative errno")
    if value >= 0 and value & ~<object>FAULT_RESULTS == VM_FAULT_RETRY:
        return plugin_error(s, f"{what} returned VM_FAULT_RETRY: there is nobody to retry; fall back to "
                            "handle_fault_mmap_sem()")
    return plugin_error(s, f"{what} returned {value:#x}, which has bits that are no VM_FAULT_ result")


# The exception `error` left the method. Context: GIL held; as invoke().
cdef int fail(PythonStrategy s, frame *f, int m, u32 before, object error) except -1:
    cdef machine *mc = machine_of(f.cpu)
    cdef str where = f"{members[m].name.decode()}() of strategy {s.name!r} on CPU {f.cpu.id}"
    if f.cpu.engine != NULL:
        if not isinstance(error, Abandoned):
            f.kind = CHECK_EXCEPTION if getattr(error, "lock_held", None) is None else CHECK_LOCK_HELD
            copy_error(f.text, ERROR_TEXT, where, error)
        return 0
    error.add_note(f"in {where}")
    if members[m].contained or f.held.n > before:
        with nogil:
            release_held(f.cpu, f.held, before)
    if not members[m].contained and kmm_poison_of(mc) == NULL:
        error.add_note("the machine is poisoned: it can only be closed")
        Py_INCREF(error)
        kmm_poison(mc, <PyObject *>error)
    if f.cpu.py_exception == NULL:
        Py_INCREF(error)
        f.cpu.py_exception = <PyObject *>error
    return 0


cdef int must_be_balanced(PythonStrategy s, frame *f, int m, u32 before) except -1:
    if f.held.n > before:
        error = plugin_error(s, f"{members[m].name.decode()}() returned on CPU {f.cpu.id} and still holds "
                             + held_words(f.held, before))
        error.lock_held = True
        raise error
    return 0


# Context: GIL held; the Cpu's thread. Calls method `m` with handles of x (and a, b); f.result is a failure until it has
# returned something that it may return.
cdef void invoke(frame *f, int m, void *x, unsigned long a, unsigned long b) noexcept:
    cdef PythonStrategy s = <PythonStrategy>machine_of(f.cpu).strategy_priv
    cdef cpu_state *state
    cdef CpuHandle on = None
    cdef VmaHandle vma = None
    cdef u32 before = 0
    cdef int takes = members[m].takes
    try:
        state = state_of(s, f.cpu)
        f.held = &state.held
        before = state.held.n
        on = cpu_handle(f.cpu, f.held, s.counter_index)
        method = s.methods[m]
        if takes == TAKES_FAULT:
            if before:
                before = 0
                error = plugin_error(s, f"CPU {f.cpu.id} has left an earlier callback with {held_words(f.held, 0)} held")
                error.lock_held = True
                raise error
            count_strategy(f.cpu, ATTEMPTS)
            result = method(s, on, mm_handle(on, <mm_struct *>x), a, b)
            count_strategy(f.cpu, RETRIED if on.fallbacks else SUCCESSES)
        elif takes == TAKES_RANGE:
            if state.nested < MAX_NESTED:
                state.before[state.nested] = before
            state.nested += 1
            result = method(s, on, mm_handle(on, <mm_struct *>x), a, b)
        elif takes == TAKES_MM:
            result = method(s, on, mm_handle(on, <mm_struct *>x))
        elif takes == TAKES_MACHINE:
            result = method(s, on, machine_ref(on, <machine *>x))
        else:
            vma = vma_handle(on, <vm_area_struct *>x)
            result = method(s, on, vma, a) if takes == TAKES_SECTION else method(s, on, vma)
            f.freed = vma.freed
        f.result = as_result(s, m, result)
        if members[m].contained:
            must_be_balanced(s, f, m, before)
        elif m == M_MMAP_WRITE_UNLOCK and state.nested:
            state.nested -= 1
            if state.nested < MAX_NESTED:
                must_be_balanced(s, f, m, state.before[state.nested])
        elif m == M_FREE_VMA and not f.freed:
            raise plugin_error(s, "free_vma() returned without having freed the VMA, at once or after a grace period")
    except BaseException as error:
        f.result = VM_FAULT_SIGBUS if members[m].gives == GIVES_FAULT else -1
        try:
            fail(s, f, m, before, error)
        except BaseException as second:     # no memory even for that
            if f.cpu.engine == NULL and f.cpu.py_exception == NULL:
                Py_INCREF(second)
                f.cpu.py_exception = <PyObject *>second
    if on is not None:
        on.cpu = NULL


# Context: the mm's, GIL not held (on the check engine it may be). False: the machine is poisoned, no Python is called.
cdef inline bint begin(frame *f, Cpu *cpu) noexcept nogil:
    if unlikely(kmm_poison_of(machine_of(cpu)) != NULL):
        return False
    f.cpu = cpu
    f.held = NULL
    f.kind = NULL
    f.result = -1
    f.freed = False
    f.mark = kmm_python_unwind(cpu, NULL) if cpu.engine != NULL else NULL
    return True


# Context: the same. Does not return on the check engine when the execution is over.
cdef inline void end(frame *f) noexcept nogil:
    if f.cpu.engine != NULL:
        kmm_python_unwind(f.cpu, f.mark)
        if f.kind != NULL:
            check_fail(f.cpu, f.kind, f.text)


# ---- the members ----

# A new member: a function like these, an M_ constant, and a line with add() below.

# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef frame f
    if not begin(&f, cpu):
        return VM_FAULT_SIGBUS
    with gil:
        invoke(&f, M_HANDLE_FAULT, mm, address, flags)
    end(&f)
    return <vm_fault_t>f.result if f.result >= 0 else VM_FAULT_SIGBUS


# Context: as strategy_ops.mmap_write_lock. Poisoned, or when Python has failed: mmap_sem, so that the change that comes is alone.
cdef void mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long last) noexcept nogil:
    cdef frame f
    cdef held_locks *held = NULL
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_MMAP_WRITE_LOCK, mm, start, last)
        end(&f)
        held = f.held
        if f.result >= 0 or cpu.engine != NULL:
            return
    else:
        with gil:
            held = held_of(cpu)
    if held != NULL and not holds_mmap_write(held, mm):
        take_mmap_write(cpu, held, mm)


# Context: as strategy_ops.mmap_write_unlock.
cdef void mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    cdef held_locks *held = NULL
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_MMAP_WRITE_UNLOCK, mm, 0, 0)
        end(&f)
        held = f.held
        if f.result >= 0 or cpu.engine != NULL:
            return
    else:
        with gil:
            held = held_of(cpu)
    if held != NULL:
        release_held(cpu, held, 0)


# Context: as strategy_ops.vma_write_begin.
cdef void vma_write_begin(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_VMA_WRITE_BEGIN, vma, <unsigned long>subclass, 0)
        end(&f)


# Context: as strategy_ops.vma_write_end.
cdef void vma_write_end(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_VMA_WRITE_END, vma, 0, 0)
        end(&f)


# Context: as strategy_ops.tree_write_begin.
cdef void tree_write_begin(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_TREE_WRITE_BEGIN, mm, 0, 0)
        end(&f)


# Context: as strategy_ops.tree_write_end.
cdef void tree_write_end(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_TREE_WRITE_END, mm, 0, 0)
        end(&f)


# Context: as strategy_ops.free_vma. Poisoned, or when Python has not freed it: after a grace period of vma_srcu.
cdef void free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_FREE_VMA, vma, 0, 0)
        end(&f)
        if f.freed:
            return
    spf_free_vma(cpu, vma)


# Context: as strategy_ops.vma_init.
cdef void vma_init(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_VMA_INIT, vma, 0, 0)
        end(&f)


# Context: as strategy_ops.mm_init.
cdef int mm_init(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    if not begin(&f, cpu):
        return -ENOMEM
    with gil:
        invoke(&f, M_MM_INIT, mm, 0, 0)
    end(&f)
    return -ENOMEM if f.result == -1 else <int>f.result


# Context: as strategy_ops.mm_exit.
cdef void mm_exit(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_MM_EXIT, mm, 0, 0)
        end(&f)


# Context: as strategy_ops.quiesce.
cdef void quiesce(Cpu *cpu, machine *m) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_QUIESCE, m, 0, 0)
        end(&f)


# Context: as strategy_ops.vma_start_write.
cdef void vma_start_write(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_VMA_START_WRITE, vma, 0, 0)
        end(&f)


# Context: as strategy_ops.vma_mark_attached.
cdef void vma_mark_attached(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_VMA_MARK_ATTACHED, vma, 0, 0)
        end(&f)


# Context: as strategy_ops.vma_mark_detached.
cdef void vma_mark_detached(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef frame f
    if begin(&f, cpu):
        with gil:
            invoke(&f, M_VMA_MARK_DETACHED, vma, 0, 0)
        end(&f)


# Context: GIL held. NULL: no memory.
cdef held_locks *held_of(Cpu *cpu) noexcept:
    try:
        return &state_of(<PythonStrategy>machine_of(cpu).strategy_priv, cpu).held
    except BaseException:
        return NULL


cdef enum:
    M_HANDLE_FAULT, M_MMAP_WRITE_LOCK, M_MMAP_WRITE_UNLOCK, M_VMA_WRITE_BEGIN, M_VMA_WRITE_END, M_TREE_WRITE_BEGIN
    M_TREE_WRITE_END, M_FREE_VMA, M_VMA_INIT, M_MM_INIT, M_MM_EXIT, M_QUIESCE, M_VMA_START_WRITE, M_VMA_MARK_ATTACHED
    M_VMA_MARK_DETACHED, NR_MEMBERS

cdef member_t members[NR_MEMBERS]


cdef void add(int m, const char *name, size_t offset, void *trampoline, int takes, int gives=GIVES_NOTHING,
              bint contained=False) noexcept:
    members[m].name = name
    members[m].offset = offset
    members[m].trampoline = trampoline
    members[m].takes = takes
    members[m].gives = gives
    members[m].contained = contained


cdef strategy_ops *no = NULL     # for the offsets
add(M_HANDLE_FAULT, "handle_fault", <size_t>&no.handle_fault, <void *>handle_fault, TAKES_FAULT, GIVES_FAULT, True)
add(M_MMAP_WRITE_LOCK, "mmap_write_lock", <size_t>&no.mmap_write_lock, <void *>mmap_write_lock, TAKES_RANGE)
add(M_MMAP_WRITE_UNLOCK, "mmap_write_unlock", <size_t>&no.mmap_write_unlock, <void *>mmap_write_unlock, TAKES_MM)
add(M_VMA_WRITE_BEGIN, "vma_write_begin", <size_t>&no.vma_write_begin, <void *>vma_write_begin, TAKES_SECTION)
add(M_VMA_WRITE_END, "vma_write_end", <size_t>&no.vma_write_end, <void *>vma_write_end, TAKES_VMA)
add(M_TREE_WRITE_BEGIN, "tree_write_begin", <size_t>&no.tree_write_begin, <void *>tree_write_begin, TAKES_MM)
add(M_TREE_WRITE_END, "tree_write_end", <size_t>&no.tree_write_end, <void *>tree_write_end, TAKES_MM)
add(M_FREE_VMA, "free_vma", <size_t>&no.free_vma, <void *>free_vma, TAKES_VMA)
add(M_VMA_INIT, "vma_init", <size_t>&no.vma_init, <void *>vma_init, TAKES_VMA)
add(M_MM_INIT, "mm_init", <size_t>&no.mm_init, <void *>mm_init, TAKES_MM, GIVES_ERRNO, True)
add(M_MM_EXIT, "mm_exit", <size_t>&no.mm_exit, <void *>mm_exit, TAKES_MM)
add(M_QUIESCE, "quiesce", <size_t>&no.quiesce, <void *>quiesce, TAKES_MACHINE)
add(M_VMA_START_WRITE, "vma_start_write", <size_t>&no.vma_start_write, <void *>vma_start_write, TAKES_VMA)
add(M_VMA_MARK_ATTACHED, "vma_mark_attached", <size_t>&no.vma_mark_attached, <void *>vma_mark_attached, TAKES_VMA)
add(M_VMA_MARK_DETACHED, "vma_mark_detached", <size_t>&no.vma_mark_detached, <void *>vma_mark_detached, TAKES_VMA)

# Members of which a strategy has both or none.
cdef list PAIRS = [("mmap_write_lock", "mmap_write_unlock"), ("vma_write_begin", "vma_write_end"),
                   ("tree_write_begin", "tree_write_end")]
# Members that Python cannot fill.
cdef tuple COMPILED_ONLY = ("pte_map_lock", "pte_spinlock", "gup_fast", "filemap_fault", "mmap_write_downgrade",
                            "vma_typesafe")

MEMBERS = tuple([members[i].name.decode() for i in range(NR_MEMBERS)])


# ---- the class ----

@cython.no_gc_clear
cdef class PythonStrategy(Strategy):
    """A fault strategy in Python: subclass it and define the members of ``strategy_ops`` that the strategy needs.

    Class attributes: ``name``; ``description``, one line (the first line of the docstring if not given); ``counters``, a
    tuple of names for :func:`pykmm.kernel.count` beside the automatic attempts, successes and retried.

    Methods get a :class:`pykmm.kernel.CpuHandle` first, and handles of what the C function gets; :mod:`pykmm.kernel` has
    the kernel functions that they call. Only ``handle_fault(self, cpu, mm, address, flags)`` is required. In place of a
    method a class may name a compiled function: ``free_vma = pykmm.kernel.spf_free_vma``. A fault may run on several CPUs
    at once: state lives in ``strategy_data`` of address spaces and VMAs, not in attributes of the object.

    :class:`pykmm.PluginError`: a class that cannot work (no handle_fault, half of a pair, a member that is no method).
    """

    def __cinit__(self, *args, **kwargs):
        cdef type cls = type(self)
        cdef int i
        cdef KernelFunction compiled
        self.name = class_text(cls, "name")
        if self.name is None:
            raise pykmm_errors().PluginError(f"{cls.__qualname__} has no name: a strategy's class needs name = \"…\"")
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__qualname__}() takes no arguments; a strategy with options needs an __init__() for them")
        doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "a strategy in Python")
        self.description = class_text(cls, "description") or doc.partition("\n")[0]
        self.cpus = {}
        self.methods = []
        self.texts = []
        for name in COMPILED_ONLY:
            if inspect.getattr_static(cls, name, None) is not None:
                raise plugin_error(self, f"{name} takes a compiled strategy")
        for pair in PAIRS:
            there = [name for name in pair if inspect.getattr_static(cls, name, None) is not None]
            if len(there) == 1:
                raise plugin_error(self, f"it defines {there[0]} and not {pair[1 - pair.index(there[0])]}")
        count_names(self, cls)
        self.table.size = sizeof(strategy_ops)
        self.table.name = keep(self, self.name)
        self.table.counter_names = self.names
        for i in range(NR_MEMBERS):
            name = members[i].name.decode()
            attribute = inspect.getattr_static(cls, name, None)
            self.methods.append(None)
            if attribute is None:
                continue
            if isinstance(attribute, KernelFunction):
                compiled = attribute
                if compiled.member != name:
                    raise plugin_error(self, f"{name} = {compiled.name}: that function "
                                       + (f"is a {compiled.member}" if compiled.member else "is none of the table's"))
                (<void **>(<char *>&self.table + members[i].offset))[0] = compiled.pointer
            elif isinstance(attribute, (staticmethod, classmethod, property)) or not callable(attribute):
                raise plugin_error(self, f"{name} is a {type(attribute).__name__}; it has to be a method")
            else:
                self.methods[i] = attribute
                (<void **>(<char *>&self.table + members[i].offset))[0] = members[i].trampoline
        if self.methods[M_HANDLE_FAULT] is None:
            raise plugin_error(self, "it defines no handle_fault(self, cpu, mm, address, flags)")
        self.ops = &self.table
        self.priv = <void *>self


cdef int count_names(PythonStrategy self, cls) except -1:
    counters = getattr(cls, "counters", ())
    if isinstance(counters, str) or not all([isinstance(name, str) and name for name in counters]):
        raise plugin_error(self, "counters must be a tuple of names")
    names = ["attempts", "successes", "retried", *counters]
    if len(set(names)) != len(names):
        raise plugin_error(self, "a name is among the counters twice (attempts, successes and retried are automatic)")
    if len(names) > KMM_STRATEGY_COUNTERS:
        raise plugin_error(self, f"there is room for {KMM_STRATEGY_COUNTERS - FIRST_REASON} counters, "
                           f"not {len(counters)}")
    for i, name in enumerate(names):
        self.names[<u32>i] = keep(self, name)
    self.names[<u32>len(names)] = NULL
    self.counter_index = {name: i for i, name in enumerate(names) if i >= FIRST_REASON}
    return 0


# Context: GIL held. `text` in C, for as long as the strategy lives.
cdef const char *keep(PythonStrategy self, str text) except NULL:
    cdef bytes encoded = text.encode()
    self.texts.append(encoded)
    return encoded


cdef str class_text(cls, str name):
    # Not the descriptor that every Strategy has.
    for base in cls.__mro__:
        if base is PythonStrategy:
            return None
        if name in base.__dict__:
            value = base.__dict__[name]
            if not isinstance(value, str) or not value:
                raise pykmm_errors().PluginError(f"{cls.__qualname__}.{name} must be a string, not {value!r}")
            return value
    return None
