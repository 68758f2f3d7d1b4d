# SPDX-License-Identifier: GPL-2.0-only
"""A call into the core (no kernel file): arguments, errors, who drives which Cpu; and File, which machines and
address spaces both take.

Every call picks one simulated Cpu (``cpu=``), owns it for its duration and runs the core with the GIL released. So
Python threads may share a Machine: those that name different Cpus run at the same time, those that name the
same one take turns.
"""
cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport ENOMEM

import operator
import os

from pykmm_ext.kernel.atomic cimport WRITE_ONCE, cmpxchg_32, kmm_await_futex, kmm_is_not_equal, kmm_wake_32, xchg_32
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.machine.tlb cimport switch_mm
from pykmm_ext.mm.filemap cimport do_truncate, fput
from pykmm_ext.mm.fork cimport mmput
from pykmm_ext.mm.mm_types cimport KMM_FAULT_ENDLESS, KMM_FAULT_RETURN, KMM_FAULT_TRIES, VM_FAULT_RETRY, machine_of
from pykmm_ext.mm.validate cimport validate_call, validate_held, violation


# ---- arguments ----

cdef unsigned long as_ulong(object value, str what) except? 0xdead0:
    """`value` as an unsigned long. Context: GIL held. TypeError, or ValueError when negative or above 2**64-1."""
    cdef object n
    try:
        n = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}") from None
    if n < 0 or n > 0xffffffffffffffff:
        raise ValueError(f"{what} must be from 0 to 2**64-1, not {n}")
    return n


cdef int as_int(object value, str what) except? -7:
    cdef object n
    try:
        n = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}") from None
    if n < -0x80000000 or n > 0x7fffffff:
        raise ValueError(f"{what} must fit 32 bits, not {n}")
    return n


cdef object as_bytes(object value, str what):
    """Context: GIL held. TypeError for what has no bytes, or has them in several pieces."""
    cdef object view
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"{what} must be bytes-like, not {type(value).__name__}") from None
    if not view.c_contiguous:
        raise TypeError(f"{what} must be contiguous")
    return view.cast("B") if view.nbytes else memoryview(b"")


cdef int raise_errno(long result) except -1:
    raise OSError(-result, os.strerror(-result))


cdef object pykmm_errors():
    """pykmm.errors. Context: GIL held; imported when something fails, not before."""
    import pykmm.errors
    return pykmm.errors


cdef int raise_alloc(int err, str what) except -1:
    if err == -ENOMEM or err == 0:
        raise MemoryError(f"no simulated memory for {what}")
    return raise_errno(err)


# ---- strategies in Python ----

cdef extern from *:
    """
    static __thread void *kmm_calling; /* the machine that a strategy's method runs for, or NULL */
    """
    void *kmm_calling

cdef bind_function bind_strategy = NULL


cdef void *callback_enter(machine_t *m) noexcept:
    global kmm_calling
    cdef void *outer = kmm_calling
    kmm_calling = m
    return outer


cdef void callback_leave(void *outer) noexcept:
    global kmm_calling
    kmm_calling = outer


cdef int machine_bind(object strategy, machine_t *m) except -1:
    if bind_strategy != NULL:
        bind_strategy(strategy, m)
    return 0


cdef void set_bind(bind_function function) noexcept:
    global bind_strategy
    bind_strategy = function


# ---- ownership of machines and Cpus ----

@cython.no_gc_clear
cdef class MachineHandle:
    """What address spaces and files hold of their machine; :class:`pykmm_ext.binding.Machine` is one."""

    def __cinit__(self, *args, **kwargs):
        self.m = NULL
        self.live_files = set()
        self.orphan_mms = []
        self.orphan_files = []
        self.live_pins = {}
        self.orphan_pins = []


cdef int machine_get(MachineHandle self) except -1:
    with cython.critical_section(self):
        if self.m == NULL:
            raise ValueError("the machine is closed")
        if kmm_calling == self.m:
            raise RuntimeError("a method of a strategy may not use the machine that has called it: it has kernel functions "
                               "(pykmm.kernel)")
        if self.m.poison != NULL:
            raise_poison(<object>self.m.poison)
        self.users += 1
    return 0


cdef int raise_poison(object error) except -1:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:       # its own __str__()
        text = type(error).__name__
    if not isinstance(error, pykmm_errors().PluginError):
        text = f"its strategy has raised {text}"
    raise pykmm_errors().PluginError(
        f"this machine can only be closed: {text}; {'; '.join(getattr(error, '__notes__', ()))}") from error


cdef void machine_put(MachineHandle self) noexcept:
    with cython.critical_section(self):
        self.users -= 1


cdef void cpu_own(Cpu *cpu) noexcept nogil:
    # owner: 0 = free, 1 = driven, 2 = driven and somebody may sleep on it.
    if cmpxchg_32(cpu, &cpu.owner, 0, 1) == 0:
        return
    while xchg_32(cpu, &cpu.owner, 2) != 0:
        kmm_await_futex(cpu, &cpu.owner, kmm_is_not_equal, 2)


cdef void cpu_disown(Cpu *cpu) noexcept nogil:
    if xchg_32(cpu, &cpu.owner, 0) == 2:
        kmm_wake_32(cpu, &cpu.owner, 1)


cdef Cpu *machine_enter(MachineHandle self, object cpu) except NULL:
    """Begin a call on a Cpu: the machine stays open and the Cpu is owned. Context: GIL held; released to wait."""
    cdef object n
    cdef Cpu *c
    try:
        n = operator.index(cpu)
    except TypeError:
        raise TypeError(f"cpu must be an integer, not {type(cpu).__name__}") from None
    machine_get(self)
    if n < 0 or n >= self.m.nr_cpus:
        nr = self.m.nr_cpus
        machine_put(self)
        raise ValueError(f"cpu {n}: this machine has {nr} CPUs (0 to {nr - 1})")
    c = self.m.cpus[<u32>n]
    if cmpxchg_32(c, &c.owner, 0, 1) != 0:
        with nogil:
            cpu_own(c)
    return c


cdef int machine_leave(MachineHandle self, Cpu *c) except -1:
    cdef object error = None
    if c.py_exception != NULL or c.fault_code >= KMM_FAULT_RETURN:
        error = take_exception(c)
    with cython.critical_section(self):
        # Alone, so that nobody but this call can have left it. (The next one might wait for it for ever.)
        if self.users == 1 and validate_call(c) != NULL and self.m.poison == NULL:
            held = left_by_call(c)
            machine_poison(self.m, held)
            if error is None:
                error = held
    cpu_disown(c)
    machine_put(self)
    if error is not None:
        raise error
    return 0


# Context: as validate_call().
cdef object left_by_call(Cpu *c):
    name = machine_of(c).strategy.name.decode("utf-8", "replace")
    return pykmm_errors().PluginError(
        f"strategy {name!r} has left {validate_call(c).decode()}: the call on CPU {c.id} has ended, and nobody else is in one",
        name)


cdef object left_behind(machine_t *m, str otherwise):
    cdef violation found
    validate_held(m, &found)
    if found.message == NULL:
        return None
    name = m.strategy.name.decode("utf-8", "replace")
    place = os.fsdecode(<bytes>found.place)
    return pykmm_errors().PluginError(
        f"strategy {name!r} has left {found.message.decode()}{f' ({place})' if place else ''}: {otherwise}", name)


cdef int machine_poison(machine_t *m, object error) except -1:
    if m.poison == NULL:
        Py_INCREF(error)
        WRITE_ONCE(m.cpus[0], <unsigned long *>&m.poison, <unsigned long><PyObject *>error)
        error.add_note("the machine is poisoned: it can only be closed")
    return 0


cdef object take_exception(Cpu *c):
    cdef object error
    cdef u32 code = c.fault_code
    cdef str who
    if c.py_exception != NULL:
        error = <object>c.py_exception
        c.py_exception = NULL
        Py_DECREF(error)
        return error
    if code < KMM_FAULT_RETURN:
        return None
    c.fault_code = 0
    name = machine_of(c).strategy.name.decode("utf-8", "replace")
    who = f"strategy {name!r}: handle_fault on CPU {c.id}, address {c.fault_address:#x},"
    if code == KMM_FAULT_RETURN:
        text = f"{who} returned {c.fault_detail:#x}, which is no result of a fault"
        if c.fault_detail & VM_FAULT_RETRY:
            text += ": there is nobody to retry; fall back to handle_fault_mmap_sem()"
    elif code == KMM_FAULT_ENDLESS:
        text = f"{who} said {KMM_FAULT_TRIES} times in a row that the fault is resolved, and the access still faults"
    else:
        text = f"{who} was given up by the watchdog"
    return pykmm_errors().PluginError(text, name)


cdef int raise_exceptions(machine_t *m) except -1:
    cdef object error, first = None
    cdef u32 i
    for i in range(m.nr_cpus):
        error = take_exception(m.cpus[i])
        if first is None:
            first = error
    if first is not None:
        raise first
    return 0


cdef void end_mm(machine_t *m, Cpu *c, mm_struct *mm) noexcept nogil:
    """Take `mm` off every Cpu and drop it. Context: `c` is owned, no other Cpu is; nobody else uses `mm`."""
    cdef u32 i
    cdef Cpu *other
    for i in range(m.nr_cpus):
        other = m.cpus[i]
        if other == c:
            if c.active_mm == mm:
                switch_mm(c, NULL)
    cpu_disown(c)
    for i in range(m.nr_cpus):
        other = m.cpus[i]
        if other != c:
            cpu_own(other)
            if other.active_mm == mm:
                switch_mm(other, NULL)
            cpu_disown(other)
    cpu_own(c)
    if c.active_mm == mm:
        switch_mm(c, NULL)
    mmput(c, mm)


cdef int machine_reap(MachineHandle self, Cpu *c) except -1:
    """End what garbage collection left behind. Context: `c` owned, machine open."""
    cdef mm_struct *mm
    cdef file_t *f
    while self.orphan_mms:
        mm = <mm_struct *><size_t>self.orphan_mms.pop()
        with nogil:
            end_mm(self.m, c, mm)
    while self.orphan_files:
        f = <file_t *><size_t>self.orphan_files.pop()
        with nogil:
            fput(c, f)
    return 0


# ---- files ----

cdef int file_check(File self) except -1:
    if self.machine.m == NULL:
        raise ValueError("the machine is closed")
    if self.f == NULL:
        raise ValueError("this file is closed")
    return 0


@cython.no_gc_clear
cdef class File:
    """A simulated file; made by :meth:`Machine.file`. Mappings keep it alive after :meth:`close`."""

    def __init__(self):
        raise TypeError("files are made by Machine.file()")

    def __dealloc__(self):
        if self.f != NULL and self.machine is not None and self.machine.m != NULL:
            self.machine.live_files.discard(<size_t>self.f)
            self.machine.orphan_files.append(<size_t>self.f)

    @property
    def size(self):
        """Bytes. :meth:`truncate` changes it."""
        file_check(self)
        return self.f.i_size

    @property
    def ino(self):
        """Inode number, as proc_maps() shows it."""
        file_check(self)
        return self.f.ino

    @property
    def dev(self):
        """(major, minor) of the device."""
        file_check(self)
        return (self.f.dev_major, self.f.dev_minor)

    def truncate(self, size, *, cpu=0):
        """ftruncate(): pages of every mapping behind the new end go, private copies too, and touching them raises
        :class:`pykmm.BusError`; the rest of the last page becomes zero.

        :param size: bytes, at most the pages of the size that the file was created with: OSError(EFBIG) beyond
        :param cpu: the simulated CPU that makes the call
        """
        cdef unsigned long n = as_ulong(size, "size")
        cdef Cpu *c
        cdef long r
        file_check(self)
        c = machine_enter(self.machine, cpu)
        try:
            with nogil:
                r = do_truncate(c, self.f, n)
        finally:
            machine_leave(self.machine, c)
        if r < 0:
            raise_errno(r)

    def close(self):
        """Drop this handle; closing twice does nothing."""
        cdef Cpu *c
        cdef file_t *f
        if self.f == NULL or self.machine.m == NULL:
            self.f = NULL
            return
        c = machine_enter(self.machine, 0)
        f = self.f
        self.f = NULL
        if f != NULL:
            self.machine.live_files.discard(<size_t>f)
            with nogil:
                fput(c, f)
        machine_leave(self.machine, c)

    def __repr__(self):
        return f"<pykmm File {self.name!r}>"
