# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for compiling a fault strategy: struct strategy_ops filled with functions that call a Python object.

A member of the table per method that the class defines, none for the others. Each such function takes the GIL, makes
handles (pykmm_ext.pykernel) that end with the call, and begins from a failure, so that nothing that goes wrong looks like
success.

An exception in Python code
    native        is kept in Cpu.py_exception and raised by whoever drives the Cpu, when the call into the machine ends
                  (pykmm_ext.handle), or by the kernel function that Python code had called and that has led to the
                  callback; the fault itself ends with VM_FAULT_SIGBUS. What the callback took through
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
from cpython.ref cimport Py_INCREF, PyObject
from libc.errno cimport ENOMEM
from libc.stdlib cimport calloc

import inspect

from pykmm_ext.engine.check cimport CHECK_EXCEPTION, CHECK_LOCK_HELD, check_fail
from pykmm_ext.handle cimport callback_enter, callback_leave, pykmm_errors, set_bind
from pykmm_ext.kernel.cpuset cimport copy_error
from pykmm_ext.kernel.rwsem cimport down_read, downgrade_write
from pykmm_ext.machine.cpu cimport KMM_STRATEGY_COUNTERS, Cpu, count_strategy, u32, unlikely
from pykmm_ext.mm.gup cimport unpin_user_pages
from pykmm_ext.mm.mm_types cimport (
    VM_FAULT_MAJOR, VM_FAULT_RETRY, VM_FAULT_SIGBUS, machine, machine_of, mm_struct, page, vm_area_struct, vm_fault,
    vm_fault_t,
)
from pykmm_ext.mm.speculative cimport spf_free_vma
from pykmm_ext.pykernel.call cimport (
    HELD_MMAP_READ, HELD_MMAP_WRITE, HELD_PAGE, HELD_PTL, CpuHandle, cpu_handle, held_locks, held_words, holds,
    machine_ref, release_held, take_mmap_write, unhold,
)
from pykmm_ext.pykernel.declared cimport (
    GIVES_BOOL, GIVES_COUNT, GIVES_ERRNO, GIVES_FAULT, GIVES_NOTHING, GIVES_PAGE, as_result, check_members, check_method,
    class_text, counters_of, plugin_error, warn_of_misspelt,
)
from pykmm_ext.pykernel.gup cimport PageArray, page_array
from pykmm_ext.pykernel.handles cimport VmaHandle, mm_handle, vma_handle
from pykmm_ext.pykernel.memory cimport PageHandle, VmFault
from pykmm_ext.pykernel.mmap cimport KernelFunction

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

# What a member takes beside the Cpu.
cdef enum:
    TAKES_FAULT             # mm, address, flags
    TAKES_RANGE             # mm, start, end
    TAKES_MM
    TAKES_VMA
    TAKES_SECTION           # vma, subclass
    TAKES_MACHINE
    TAKES_VMF
    TAKES_PAGES             # mm, start, nr_pages, gup_flags, pages
cdef tuple PARAMETERS = (("mm", "address", "flags"), ("mm", "start", "end"), ("mm",), ("vma",), ("vma", "subclass"),
                         ("machine",), ("vmf",), ("mm", "start", "nr_pages", "gup_flags", "pages"))

cdef struct member_t:
    const char *name
    size_t offset           # in strategy_ops
    void *trampoline
    int takes
    int gives               # pykernel/declared
    bint contained          # after an exception the machine is as if the call had failed

# One call, on the stack of the C function that the mm calls.
cdef struct frame:
    Cpu *cpu
    held_locks *held        # of the Cpu
    void *mark              # engine_ops.unwind()
    const char *kind        # check engine: the violation that this call is
    long result             # negative where the member returns nothing: it has failed
    bint freed              # the VmaHandle was handed to something that frees it
    unsigned int gup_flags  # TAKES_PAGES
    page **pages
    page *found             # GIVES_PAGE
    bint major
    char text[ERROR_TEXT]


# ---- state by Cpu ----

# Cpu.py_state. Made with the machine: when a callback has failed, for want of memory or stack, what is held must be known.
cdef struct cpu_state:
    held_locks held
    u32 nested
    u32 before[MAX_NESTED]  # held.n when mmap_write_lock() was called


# Context: any; the thread that drives the Cpu.
cdef inline cpu_state *state_of(Cpu *cpu) noexcept nogil:
    return <cpu_state *>cpu.py_state


# Context: GIL held; between two executions of the check engine.
cdef void python_strategy_reset(machine *m) noexcept:
    cdef u32 i
    for i in range(m.nr_cpus):
        state_of(m.cpus[i]).held.n = state_of(m.cpus[i]).nested = 0


# Context: as machine_bind().
cdef int bind_machine(object strategy, machine *m) except -1:
    cdef u32 i
    if isinstance(strategy, PythonStrategy):
        for i in range(m.nr_cpus):
            m.cpus[i].py_state = calloc(1, sizeof(cpu_state))
            if m.cpus[i].py_state == NULL:
                raise MemoryError()
    return 0


set_bind(bind_machine)


# ---- calls ----

# Context: GIL held. The same exception may come again and again.
cdef int add_note(object error, str note) except -1:
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return 0


# The exception `error` left the method. What has to be done is done first, and cannot fail; what is said of it may.
# Context: GIL held; as invoke().
cdef int fail(PythonStrategy s, frame *f, int m, u32 before, object error) except -1:
    cdef machine *mc = machine_of(f.cpu)
    cdef bint poisons = not members[m].contained and kmm_poison_of(mc) == NULL
    if f.cpu.engine != NULL:
        if not isinstance(error, Abandoned):
            f.kind = CHECK_EXCEPTION
            if getattr(error, "lock_held", None) is not None:
                f.kind = CHECK_LOCK_HELD
            copy_error(f.text, ERROR_TEXT, where(s, f, m), error)
        return 0
    if members[m].contained or f.held.n > before:
        with nogil:
            release_held(f.cpu, f.held, before)
    if poisons:
        Py_INCREF(error)
        kmm_poison(mc, <PyObject *>error)
    if f.cpu.py_exception == NULL:
        Py_INCREF(error)
        f.cpu.py_exception = <PyObject *>error
    add_note(error, f"in {where(s, f, m)}")
    if poisons:
        add_note(error, "the machine is poisoned: it can only be closed")
    return 0


cdef str where(PythonStrategy s, frame *f, int m):
    return f"{members[m].name.decode()}() of strategy {s.name!r} on CPU {f.cpu.id}"


cdef int must_be_balanced(PythonStrategy s, frame *f, int m, u32 before) except -1:
    if f.held.n > before:
        error = plugin_error(s.name, f"{members[m].name.decode()}() returned on CPU {f.cpu.id} and still holds "
                             + held_words(f.held, before))
        error.lock_held = True
        raise error
    return 0


# Context: GIL held. The method gives what it holds to its caller, and nothing else is left. False: it does not hold it.
cdef int hand_over(PythonStrategy s, frame *f, int m, u32 before, u32 kind, void *lock, long index) except -1:
    if not unhold(f.held, kind, lock, index):
        return False
    try:
        must_be_balanced(s, f, m, before)
    except BaseException:
        f.held.locks[f.held.n].kind = kind      # it goes back with the rest
        f.held.locks[f.held.n].lock = lock
        f.held.locks[f.held.n].index = index
        f.held.n += 1
        raise
    return True


# Context: GIL held. The end of what mmap_write_lock() of this Cpu has begun: what was held before that.
cdef u32 end_nested(cpu_state *state) noexcept:
    if state.nested == 0:
        return 0
    state.nested -= 1
    return state.before[state.nested] if state.nested < MAX_NESTED else MAX_NESTED * MAX_NESTED


# Context: GIL held. `result` is what the method may return: does what the Cpu holds go with it?
cdef int settle(PythonStrategy s, frame *f, int m, void *x, u32 before, cpu_state *state, object result) except -1:
    cdef PageHandle found
    if m == M_PTE_MAP_LOCK or m == M_PTE_SPINLOCK:
        if f.result and not hand_over(s, f, m, before, HELD_PTL, (<vm_fault *>x).ptl, 0):
            raise plugin_error(s.name, f"{members[m].name.decode()}() returned True on CPU {f.cpu.id} and does not hold the "
                               "page-table lock of its VmFault: pte_trylock() takes it")
    elif m == M_FILEMAP_FAULT and isinstance(result, PageHandle):
        found = result
        if not found.refs or not hand_over(s, f, m, before, HELD_PAGE, found.pg, found.refs):
            raise plugin_error(s.name, "filemap_fault() returned a page without a reference: find_get_page() and "
                               "filemap_fault() of pykmm.kernel take one")
        found.refs = 0
        f.found = found.pg
        f.major = found.major
    elif m == M_MMAP_WRITE_UNLOCK:
        before = end_nested(state)
    elif m == M_MMAP_WRITE_DOWNGRADE:
        before = end_nested(state)
        if not hand_over(s, f, m, before, HELD_MMAP_READ, x, 0):
            raise plugin_error(s.name, f"mmap_write_downgrade() returned on CPU {f.cpu.id} and does not hold mmap_sem for "
                               "reading: downgrade_write() does that")
    elif m == M_FREE_VMA and not f.freed:
        raise plugin_error(s.name, "free_vma() returned without having freed the VMA, at once or after a grace period")
    elif m in (M_MMAP_WRITE_LOCK, M_VMA_WRITE_BEGIN, M_VMA_WRITE_END, M_TREE_WRITE_BEGIN, M_TREE_WRITE_END,
               M_VMA_START_WRITE):
        return 0            # what it has taken may be for the writer's next callback
    return must_be_balanced(s, f, m, before)


# Context: GIL held; the Cpu's thread. Calls method `m` with handles of x (and a, b); f.result is a failure until it has
# returned something that it may return.
cdef void invoke(frame *f, int m, void *x, unsigned long a, unsigned long b) noexcept:
    cdef machine *mc = machine_of(f.cpu)
    cdef PythonStrategy s = <PythonStrategy>mc.strategy_priv
    cdef cpu_state *state = state_of(f.cpu)
    cdef CpuHandle on = None
    cdef CpuHandle outer = None
    cdef VmaHandle vma = None
    cdef VmFault fault = None
    cdef PageArray pages = None
    cdef u32 before = state.held.n
    cdef int takes = members[m].takes
    cdef void *calling = callback_enter(mc)
    try:
        on = cpu_handle(f.cpu, f.held, s.counter_index)
        method = s.methods[m]
        if takes == TAKES_FAULT:
            if before:
                before = 0
                error = plugin_error(s.name, f"CPU {f.cpu.id} has left an earlier callback with {held_words(f.held, 0)} held")
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
        elif takes == TAKES_VMF:
            fault = <VmFault>(<vm_fault *>x).strategy_data
            outer = fault.on
            fault.on = on
            result = method(s, on, fault)
        elif takes == TAKES_PAGES:
            pages = page_array(on, f.pages, b, f.gup_flags)
            result = method(s, on, mm_handle(on, <mm_struct *>x), a, b, f.gup_flags, pages)
        else:
            vma = vma_handle(on, <vm_area_struct *>x)
            result = method(s, on, vma, a) if takes == TAKES_SECTION else method(s, on, vma)
            f.freed = vma.freed
        if members[m].gives == GIVES_PAGE and isinstance(result, PageHandle):
            f.result = 0
        else:
            f.result = as_result(s.name, members[m].name, members[m].gives, result)
        if pages is not None and <unsigned long>f.result != pages.n:
            raise plugin_error(s.name, f"gup_fast() returned {result}, and there are {pages.n} pages in the array")
        settle(s, f, m, x, before, state, result)
    except BaseException as error:
        f.result = VM_FAULT_SIGBUS if members[m].gives == GIVES_FAULT else -1
        try:
            if pages is not None and pages.n and f.cpu.engine == NULL:
                with nogil:
                    unpin_user_pages(f.cpu, f.pages, pages.n, f.gup_flags, False)
            fail(s, f, m, before, error)
        except BaseException:       # no memory or no stack for the notes
            pass
    if fault is not None:
        fault.on = outer
    if on is not None:
        on.cpu = NULL
    callback_leave(calling)


# Context: the mm's, GIL not held (on the check engine it may be). The method's f.result; False: the machine is poisoned, no
# Python is called, and nothing but f.held is there. Does not return on the check engine when the execution is over.
cdef inline bint call(frame *f, Cpu *cpu, int m, void *x, unsigned long a, unsigned long b) noexcept nogil:
    f.held = &state_of(cpu).held
    f.result = -1
    f.freed = False
    f.found = NULL
    if unlikely(kmm_poison_of(machine_of(cpu)) != NULL):
        return False
    f.cpu = cpu
    f.kind = NULL
    f.mark = kmm_python_unwind(cpu, NULL) if cpu.engine != NULL else NULL
    with gil:
        invoke(f, m, x, a, b)
    if cpu.engine != NULL:
        kmm_python_unwind(cpu, f.mark)
        if f.kind != NULL:
            check_fail(cpu, f.kind, f.text)
    return True


# Context: the same. For members that return nothing.
cdef inline void notify(Cpu *cpu, int m, void *x, unsigned long a) noexcept nogil:
    cdef frame f
    call(&f, cpu, m, x, a, 0)


# ---- the members ----

# A new member: a function like these, an M_ constant, and a line with add() below.

# Context: as strategy_ops.vma_write_begin.
cdef void vma_write_begin(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil:
    notify(cpu, M_VMA_WRITE_BEGIN, vma, <unsigned long>subclass)


# Contexts: as the members of strategy_ops of these names.
cdef void vma_write_end(Cpu *cpu, vm_area_struct *vma) noexcept nogil: notify(cpu, M_VMA_WRITE_END, vma, 0)  # as there
cdef void tree_write_begin(Cpu *cpu, mm_struct *mm) noexcept nogil: notify(cpu, M_TREE_WRITE_BEGIN, mm, 0)  # as there
cdef void tree_write_end(Cpu *cpu, mm_struct *mm) noexcept nogil: notify(cpu, M_TREE_WRITE_END, mm, 0)  # as there
cdef void vma_init(Cpu *cpu, vm_area_struct *vma) noexcept nogil: notify(cpu, M_VMA_INIT, vma, 0)  # as there
cdef void mm_exit(Cpu *cpu, mm_struct *mm) noexcept nogil: notify(cpu, M_MM_EXIT, mm, 0)  # as there
cdef void quiesce(Cpu *cpu, machine *m) noexcept nogil: notify(cpu, M_QUIESCE, m, 0)  # as there
cdef void vma_start_write(Cpu *cpu, vm_area_struct *vma) noexcept nogil: notify(cpu, M_VMA_START_WRITE, vma, 0)  # as there
cdef void vma_mark_attached(Cpu *cpu, vm_area_struct *vma) noexcept nogil: notify(cpu, M_VMA_MARK_ATTACHED, vma, 0)  # as there
cdef void vma_mark_detached(Cpu *cpu, vm_area_struct *vma) noexcept nogil: notify(cpu, M_VMA_MARK_DETACHED, vma, 0)  # as there


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef frame f
    call(&f, cpu, M_HANDLE_FAULT, mm, address, flags)
    return <vm_fault_t>f.result if f.result >= 0 else VM_FAULT_SIGBUS


# Context: as strategy_ops.pte_map_lock. Poisoned, or Python has failed: refused.
cdef int pte_map_lock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef frame f
    call(&f, cpu, M_PTE_MAP_LOCK, vmf, 0, 0)
    return f.result == 1


# Context: as strategy_ops.pte_spinlock.
cdef int pte_spinlock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef frame f
    call(&f, cpu, M_PTE_SPINLOCK, vmf, 0, 0)
    return f.result == 1


# Context: as strategy_ops.gup_fast. Poisoned, or Python has failed: none, and the slow path does it.
cdef long gup_fast(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                   page **pages) noexcept nogil:
    cdef frame f
    f.gup_flags = gup_flags
    f.pages = pages
    call(&f, cpu, M_GUP_FAST, mm, start, nr_pages)
    return f.result if f.result >= 0 else 0


# Context: as strategy_ops.filemap_fault.
cdef page *filemap_fault(Cpu *cpu, vm_fault *vmf, vm_fault_t *ret) noexcept nogil:
    cdef frame f
    call(&f, cpu, M_FILEMAP_FAULT, vmf, 0, 0)
    if f.found == NULL:
        ret[0] = <vm_fault_t>f.result if f.result > 0 else VM_FAULT_RETRY
    elif f.major:
        ret[0] |= VM_FAULT_MAJOR
    return f.found


# Context: as strategy_ops.mmap_write_lock. Poisoned, or when Python has failed: mmap_sem, so that the change that comes is alone.
cdef void mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long last) noexcept nogil:
    cdef frame f
    if call(&f, cpu, M_MMAP_WRITE_LOCK, mm, start, last) and (f.result >= 0 or cpu.engine != NULL):
        return
    if not holds(f.held, HELD_MMAP_WRITE, mm):
        take_mmap_write(cpu, f.held, mm)


# Context: as strategy_ops.mmap_write_unlock.
cdef void mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    if call(&f, cpu, M_MMAP_WRITE_UNLOCK, mm, 0, 0) and (f.result >= 0 or cpu.engine != NULL):
        return
    release_held(cpu, f.held, 0)


# Context: as strategy_ops.mmap_write_downgrade. Poisoned, or when Python has failed: what downgrade_write() would have
# done; the caller releases it.
cdef void mmap_write_downgrade(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    if call(&f, cpu, M_MMAP_WRITE_DOWNGRADE, mm, 0, 0) and (f.result >= 0 or cpu.engine != NULL):
        return
    if unhold(f.held, HELD_MMAP_WRITE, mm, 0):
        downgrade_write(cpu, &mm.mmap_sem)
    elif not unhold(f.held, HELD_MMAP_READ, mm, 0):
        down_read(cpu, &mm.mmap_sem)
    release_held(cpu, f.held, 0)


# Context: as strategy_ops.free_vma. Poisoned, or when Python has not freed it: after a grace period of vma_srcu.
cdef void free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef frame f
    call(&f, cpu, M_FREE_VMA, vma, 0, 0)
    if not f.freed:
        spf_free_vma(cpu, vma)


# Context: as strategy_ops.mm_init.
cdef int mm_init(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef frame f
    call(&f, cpu, M_MM_INIT, mm, 0, 0)
    return -ENOMEM if f.result == -1 else <int>f.result


cdef enum:
    M_HANDLE_FAULT, M_MMAP_WRITE_LOCK, M_MMAP_WRITE_UNLOCK, M_VMA_WRITE_BEGIN, M_VMA_WRITE_END, M_TREE_WRITE_BEGIN
    M_TREE_WRITE_END, M_FREE_VMA, M_VMA_INIT, M_MM_INIT, M_MM_EXIT, M_QUIESCE, M_VMA_START_WRITE, M_VMA_MARK_ATTACHED
    M_VMA_MARK_DETACHED, M_PTE_MAP_LOCK, M_PTE_SPINLOCK, M_GUP_FAST, M_FILEMAP_FAULT, M_MMAP_WRITE_DOWNGRADE, NR_MEMBERS

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

add(M_PTE_MAP_LOCK, "pte_map_lock", <size_t>&no.pte_map_lock, <void *>pte_map_lock, TAKES_VMF, GIVES_BOOL, True)
add(M_PTE_SPINLOCK, "pte_spinlock", <size_t>&no.pte_spinlock, <void *>pte_spinlock, TAKES_VMF, GIVES_BOOL, True)
add(M_GUP_FAST, "gup_fast", <size_t>&no.gup_fast, <void *>gup_fast, TAKES_PAGES, GIVES_COUNT, True)
add(M_FILEMAP_FAULT, "filemap_fault", <size_t>&no.filemap_fault, <void *>filemap_fault, TAKES_VMF, GIVES_PAGE, True)
add(M_MMAP_WRITE_DOWNGRADE, "mmap_write_downgrade", <size_t>&no.mmap_write_downgrade, <void *>mmap_write_downgrade,
    TAKES_MM)

MEMBERS = tuple([members[i].name.decode() for i in range(NR_MEMBERS)])
cdef tuple FLAGS = ("vma_typesafe", "munmap_downgrade")


cdef bint flag_of(str strategy, cls, str name) except? -1:
    value = getattr(cls, name, False)
    if not isinstance(value, bool):
        raise plugin_error(strategy, f"{name} must be True or False, not {value!r}")
    return value


# ---- the class ----

@cython.no_gc_clear
cdef class PythonStrategy(Strategy):
    """A fault strategy in Python: subclass it and define the members of ``strategy_ops`` that the strategy needs.

    Class attributes: ``name``; ``description``, one line (the first line of the docstring if not given); ``counters``, a
    tuple of names for :func:`pykmm.kernel.count` beside the automatic attempts, successes and retried; ``vma_typesafe``,
    True for VMAs that are recycled at once; ``munmap_downgrade``, True for an ``munmap()`` that goes on as a reader. Every
    other member is a method.

    Methods get a :class:`pykmm.kernel.CpuHandle` first, and handles of what the C function gets; :mod:`pykmm.kernel` has
    the kernel functions that they call. Only ``handle_fault(self, cpu, mm, address, flags)`` is required. In place of a
    method a class may name a compiled function: ``free_vma = pykmm.kernel.spf_free_vma``. A fault may run on several CPUs
    at once: state lives in ``strategy_data`` of address spaces and VMAs, not in attributes of the object.

    An exception of a method comes out of the call into the machine that has led to it, and through the kernel function that
    called the method in its turn.

    :class:`pykmm.PluginError`: a class that cannot work (no handle_fault, half of a pair, a member that is no method, or a
    method with other parameters).
    """

    def __cinit__(self, *args, **kwargs):
        cdef type cls = type(self)
        cdef int i
        cdef KernelFunction compiled
        self.name = class_text(cls, "name", PythonStrategy)
        if self.name is None:
            raise pykmm_errors().PluginError(f"{cls.__qualname__} has no name: a strategy's class needs name = \"…\"")
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__qualname__}() takes no arguments; a strategy with options needs an __init__() for them")
        doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "a strategy in Python")
        self.description = class_text(cls, "description", PythonStrategy) or doc.partition("\n")[0]
        self.methods = []
        self.texts = []
        defined = {name for name in MEMBERS if inspect.getattr_static(cls, name, None) is not None}
        check_members(self.name, defined)
        warn_of_misspelt(self.name, cls, MEMBERS + FLAGS,
                         defined | {flag for flag in FLAGS if hasattr(cls, flag)})
        self.table.vma_typesafe = flag_of(self.name, cls, "vma_typesafe")
        self.table.munmap_downgrade = flag_of(self.name, cls, "munmap_downgrade")
        names = counters_of(self.name, cls, KMM_STRATEGY_COUNTERS)
        for number, text in enumerate(names):
            self.names[<u32>number] = keep(self, text)
        self.names[<u32>len(names)] = NULL
        self.counter_index = {text: number for number, text in enumerate(names) if number >= FIRST_REASON}
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
                    raise plugin_error(self.name, f"{name} = {compiled.name}: that function "
                                       + (f"is a {compiled.member}" if compiled.member else "is none of the table's"))
                (<void **>(<char *>&self.table + members[i].offset))[0] = compiled.pointer
            elif isinstance(attribute, (staticmethod, classmethod, property)) or not callable(attribute):
                raise plugin_error(self.name, f"{name} is a {type(attribute).__name__}; it has to be a method")
            else:
                check_method(self.name, name, <tuple>PARAMETERS[members[i].takes], self, attribute)
                self.methods[i] = attribute
                (<void **>(<char *>&self.table + members[i].offset))[0] = members[i].trampoline
        if self.methods[M_HANDLE_FAULT] is None:
            raise plugin_error(self.name, "it defines no handle_fault(self, cpu, mm, address, flags)")
        self.ops = &self.table
        self.priv = <void *>self


# Context: GIL held. `text` in C, for as long as the strategy lives.
cdef const char *keep(PythonStrategy self, str text) except NULL:
    cdef bytes encoded = text.encode()
    self.texts.append(encoded)
    return encoded
