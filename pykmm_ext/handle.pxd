# SPDX-License-Identifier: GPL-2.0-only
# A call into the core, from its arguments to what it raises. Not part of the plugin C API.
from pykmm_ext.arch cimport Arch
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport file as file_t
from pykmm_ext.mm.mm_types cimport machine as machine_t
from pykmm_ext.mm.mm_types cimport mm_struct

cdef class MachineHandle:
    cdef machine_t *m               # NULL = closed
    cdef readonly Arch arch_object
    cdef long users                 # calls in progress; changed under critical_section(self)
    cdef set live_files             # addresses of files that a File object holds a reference to
    cdef list orphan_mms            # address spaces and files whose Python object went away without exit()/close():
    cdef list orphan_files          # ended by the next mm(), fork(), file() or close()
    cdef dict live_pins             # id of a Pin -> (frames, written): given up by close()
    cdef list orphan_pins           # the same of Pins that went away without unpin()

cdef class File:
    cdef file_t *f                  # NULL = closed
    cdef readonly MachineHandle machine
    cdef readonly str name
    cdef object __weakref__

# Context: GIL held. A method of a strategy in Python begins on this thread, called by machine `m`: until it ends, the thread
# gets a RuntimeError from every call into that machine (it would wait for itself). What callback_leave() wants.
cdef void *callback_enter(machine_t *m) noexcept
cdef void callback_leave(void *outer) noexcept
# Context: GIL held, a new machine. What a strategy in Python knows of each Cpu (Cpu.py_state) is made now, when it may still
# fail (MemoryError), and goes with the machine.
ctypedef int (*bind_function)(object strategy, machine_t *m) except -1
cdef int machine_bind(object strategy, machine_t *m) except -1
cdef void set_bind(bind_function function) noexcept

# Context of these: GIL held. `what` names the argument in a TypeError or ValueError.
cdef unsigned long as_ulong(object value, str what) except? 0xdead0
cdef int as_int(object value, str what) except? -7
# The bytes of anything that has them, as a memoryview of "B".
cdef object as_bytes(object value, str what)
# OSError with the errno of a -errno result.
cdef int raise_errno(long result) except -1
# The same for an allocation that returned NULL: MemoryError for -ENOMEM.
cdef int raise_alloc(int err, str what) except -1
cdef object pykmm_errors()

# Context: GIL held. A call into the machine begins / ends: close() refuses while one is in progress.
# Raises ValueError when the machine is closed.
cdef int machine_get(MachineHandle self) except -1
# Context: GIL held; every Cpu is owned, or nobody else uses the machine. A PluginError that says what the strategy still holds
# and what comes of it, or None.
cdef object left_behind(machine_t *m, str otherwise)
# Nobody can use the machine any more but to close it. Context: GIL held.
cdef int machine_poison(machine_t *m, object error) except -1
cdef void machine_put(MachineHandle self) noexcept
# Context: no Cpu owned by the caller, except Cpus of a lower id; GIL not held. May sleep.
cdef void cpu_own(Cpu *cpu) noexcept nogil
# Context: any.
cdef void cpu_disown(Cpu *cpu) noexcept nogil
# Context: GIL held, released to wait. machine_get() and cpu_own() of the Cpu that `cpu` names / the reverse.
cdef Cpu *machine_enter(MachineHandle self, object cpu) except NULL
# The reverse raises what a strategy in Python has left in the Cpu.
cdef int machine_leave(MachineHandle self, Cpu *c) except -1
# Context: GIL held, the Cpu owned, or nobody uses the machine. What a strategy in Python has raised on it, or what its
# last access says of a strategy that makes mistakes (PluginError), or None.
cdef object take_exception(Cpu *c)
# Context: the same, of all CPUs of a machine that nobody else uses: the first one; raised when there is one.
cdef int raise_exceptions(machine_t *m) except -1
# Context: `c` owned, no other Cpu is; GIL not held; nobody else uses `mm`. Takes `mm` off every Cpu and drops it.
cdef void end_mm(machine_t *m, Cpu *c, mm_struct *mm) noexcept nogil
# Context: `c` owned, machine open, GIL held. Ends what garbage collection left behind.
cdef int machine_reap(MachineHandle self, Cpu *c) except -1
# ValueError when the file or its machine is closed.
cdef int file_check(File self) except -1
