# SPDX-License-Identifier: GPL-2.0-only
"""The Python face of the machine (no kernel file): Machine. What it makes is in handle (File) and mm_binding (MmStruct).

pykmm.machine adds what is not the core's business (names of plugins, tapes).
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF
from libc.errno cimport EINVAL, ENOMEM

import os

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.handle cimport File as file_object
from pykmm_ext.handle cimport (
    MachineHandle, as_bytes, as_int, as_ulong, cpu_disown, cpu_own, left_behind, machine_bind, machine_enter, machine_get,
    machine_leave, machine_put, machine_reap, pykmm_errors, raise_alloc, raise_exceptions, take_exception,
)
from pykmm_ext.kernel.rcu cimport rcu_barrier
from pykmm_ext.machine.cpu cimport (
    FAULT_ANON_WRITE, FAULT_ANON_ZERO, FAULT_AROUND_PAGES, FAULT_FILE_COW, FAULT_FILE_READ, FAULT_FILE_SHARED,
    FAULT_MMAP_SEM, FAULT_OOM, FAULT_SIGBUS, FAULT_SIGSEGV, FAULT_SPURIOUS, FAULT_WP_COPY, FAULT_WP_REUSE, IPI_HANDLED,
    IPI_SENT, KMM_STRATEGY_COUNTERS, NR_FOLL_PIN_ACQUIRED, NR_FOLL_PIN_RELEASED, NR_PGTABLE_ALLOC, NR_PGTABLE_FREE,
    PGALLOC, PGFAULT, PGFREE, PGMAJFAULT, TLB_FLUSH_LOCAL, TLB_FLUSH_RECEIVED, TLB_FLUSH_REMOTE, TLB_HIT, TLB_MISS,
    VMACACHE_FIND_CALLS, VMACACHE_FIND_HITS, Cpu, u8, u32, u64,
)
from pykmm_ext.machine.memory cimport machine_create, machine_destroy, machine_leaks, machine_quiesce
from pykmm_ext.machine.tlb cimport switch_mm
from pykmm_ext.mm.filemap cimport file_create, fput
from pykmm_ext.mm.fork cimport mm_alloc, mmput
from pykmm_ext.mm.mm_types cimport (
    KMM_QUIRK_EAGER_CALLBACKS, KMM_QUIRK_FORK_NO_SECTION, KMM_QUIRK_MPROTECT_PLAIN, KMM_QUIRK_MPROTECT_POPULATE,
    KMM_QUIRK_MREMAP_EARLY_COUNT,
    KMM_QUIRK_STACK_GROW_READ,
    KMM_QUIRK_VMA_ADJUST_LATE_END, KMM_QUIRK_VMA_ADJUST_ORDER, KMM_QUIRK_VMACACHE_NARROW, arch_ops,
)
from pykmm_ext.mm.mm_types cimport file as file_t
from pykmm_ext.mm.mm_types cimport machine as machine_t
from pykmm_ext.mm.mm_types cimport mm_struct, strategy_ops
from pykmm_ext.mm.page_alloc cimport nr_used_pages
from pykmm_ext.mm.validate cimport validate_machine, violation
from pykmm_ext.mm_binding cimport MmStruct as mm_object
from pykmm_ext.mm_binding cimport mm_default_brk, wrap_mm
from pykmm_ext.pin cimport pins_reap, release_pins
from pykmm_ext.strategy cimport Strategy, strategy_check_ops

# Public names of this module. (A cimported name alone is none: hence the other names for the types above.)
from pykmm_ext.handle import File  # no-cython-lint
from pykmm_ext.mm_binding import MmStruct  # no-cython-lint
from pykmm_ext.vma_binding import Vma  # no-cython-lint

MAX_CPUS = 4096
#: Names of enum kmm_quirk (include/kmm/quirks.h says what each takes back).
QUIRKS = {
    "vma-adjust-order": KMM_QUIRK_VMA_ADJUST_ORDER,
    "vma-adjust-late-end": KMM_QUIRK_VMA_ADJUST_LATE_END,
    "mprotect-populate": KMM_QUIRK_MPROTECT_POPULATE,
    "vmacache-narrow": KMM_QUIRK_VMACACHE_NARROW,
    "fork-no-section": KMM_QUIRK_FORK_NO_SECTION,
    "eager-callbacks": KMM_QUIRK_EAGER_CALLBACKS,
    "mprotect-plain": KMM_QUIRK_MPROTECT_PLAIN,
    "mremap-early-count": KMM_QUIRK_MREMAP_EARLY_COUNT,
    "stack-grow-read": KMM_QUIRK_STACK_GROW_READ,
}


# ---- the machine ----

@cython.no_gc_clear
cdef class Machine(MachineHandle):
    """A simulated machine: Cpus, physical memory, one arch and one fault strategy.

    :param arch: an :class:`pykmm_ext.arch.Arch`
    :param strategy: a :class:`pykmm_ext.strategy.Strategy`
    :param cpus: number of simulated CPUs, 1 to 4096
    :param memory: bytes of physical memory (reserved, committed as it is used)
    :param fault_around: bytes mapped around a read fault of a file, as Linux's fault_around_bytes; one page = off
    :param quirks: names of :data:`QUIRKS`: fixes of the mm that this machine does without (include/kmm/quirks.h)

    A context manager; :meth:`close` ends what is still open and raises :class:`pykmm.InvariantViolation` when
    anything leaked. Errors: ValueError, TypeError for bad arguments, MemoryError where the host has too little.
    """

    def __init__(self, Arch arch not None, Strategy strategy not None, cpus=2, memory=256 << 20, fault_around=65536,
                 quirks=()):
        cdef int err = 0
        cdef u32 nr_cpus
        cdef u64 nbytes
        cdef machine_t *m
        cdef unsigned long around
        cdef u64 quirk_bits = 0
        cdef const arch_ops *ops = arch_get_ops(arch)
        cdef const strategy_ops *sops = strategy_check_ops(strategy)
        cdef void *priv = strategy.priv
        if self.m != NULL:
            raise ValueError("this machine is already built")
        count = as_int(cpus, "cpus")
        if count < 1 or count > MAX_CPUS:
            raise ValueError(f"cpus must be from 1 to {MAX_CPUS}, not {count}")
        nr_cpus = count
        nbytes = as_ulong(memory, "memory")
        around = as_ulong(fault_around, "fault_around")
        page_size = 1 << ops.page_shift
        if nbytes < 64 * page_size:
            raise ValueError(f"memory must be at least {64 * page_size} bytes, not {nbytes}")
        if nbytes > 1 << 46:
            raise ValueError(f"memory must be at most 64T, not {nbytes} bytes")
        table = 1 << ops.level_shift[1]
        if around < page_size or around > table or around & (around - 1):
            raise ValueError(f"fault_around must be a power of two from {page_size} to {table} bytes, not {around}")
        if isinstance(quirks, str):
            raise TypeError("quirks must be a collection of names, not a string")
        for name in quirks:
            if name not in QUIRKS:
                raise ValueError(f"unknown quirk {name!r}; known: {', '.join(QUIRKS)}")
            quirk_bits |= <u64>QUIRKS[name]
        self.arch_object = arch
        self.strategy_object = strategy
        with nogil:
            m = machine_create(nr_cpus, nbytes, ops, sops, priv, &err)
        if m == NULL:
            if err == -ENOMEM:
                raise MemoryError(f"the host has no room for a machine with {nbytes} bytes and {nr_cpus} CPUs")
            if err == -EINVAL:
                raise ValueError(f"memory of {nbytes} bytes is more than this host can map")
            raise OSError(-err, os.strerror(-err))
        m.fault_around_pages = around >> ops.page_shift
        m.quirks = quirk_bits
        self.m = m
        machine_bind(strategy, m)

    def __dealloc__(self):
        cdef machine_leaks leaks
        if self.m != NULL:
            _shut(self, &leaks)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def closed(self):
        """Whether :meth:`close` has been called."""
        return self.m == NULL

    @property
    def cpus(self):
        """Number of simulated CPUs."""
        machine_get(self)
        try:
            return self.m.nr_cpus
        finally:
            machine_put(self)

    @property
    def memory(self):
        """Bytes of physical memory."""
        machine_get(self)
        try:
            return self.m.nr_frames << self.m.arch.page_shift
        finally:
            machine_put(self)

    @property
    def quirks(self):
        """Names of the quirks that this machine was made with."""
        machine_get(self)
        try:
            return tuple([name for name, bit in QUIRKS.items() if self.m.quirks & <u64>bit])
        finally:
            machine_put(self)

    @property
    def page_size(self):
        """Bytes of a page."""
        return 1 << arch_get_ops(self.arch_object).page_shift

    @property
    def fault_around(self):
        """Bytes mapped around a read fault of a file."""
        machine_get(self)
        try:
            return self.m.fault_around_pages << self.m.arch.page_shift
        finally:
            machine_put(self)

    def close(self):
        """End every address space, file and pin that is still open, and the machine.

        Raises :class:`pykmm.InvariantViolation` when an object or a frame is still alive afterwards,
        :class:`pykmm.PluginError` when a strategy's code has raised or has left a lock, a read section or IRQs behind
        (nobody waits for them; the memory is not given back), RuntimeError when another thread is inside a call,
        BufferError while a view of :attr:`physical_memory` exists. Closing twice does nothing.
        """
        cdef machine_leaks leaks
        with cython.critical_section(self):
            if self.m == NULL:
                return
            if self.users:
                raise RuntimeError("the machine is in use by another thread")
            if self.exports:
                raise BufferError("a view of physical_memory still exists: release() it first")
            error = _shut(self, &leaks)
        if error is not None:
            raise error
        left = {
            "address spaces": leaks.mms, "vm_area_structs": leaks.vmas, "anon_vmas": leaks.anon_vmas,
            "anon_vma_chains": leaks.avcs, "files": leaks.files,
            "mempolicies": leaks.policies, "frames": leaks.frames,
        }
        if any(left.values()):
            what = ", ".join(f"{count} {kind}" for kind, count in left.items() if count)
            raise pykmm_errors().InvariantViolation(f"leaked: {what}", "when the machine was closed")

    def mm(self):
        """A new, empty address space. MemoryError when the machine is full."""
        cdef int err = 0
        cdef mm_struct *mm
        cdef mm_object result
        cdef Cpu *c = machine_enter(self, 0)
        try:
            machine_reap(self, c)
            pins_reap(self, self.m, c)
            with nogil:
                mm = mm_alloc(c, self.m, &err)
            if mm == NULL:
                raise_alloc(err, "an address space")
            mm_default_brk(mm)
            result = wrap_mm(self, mm)
        finally:
            machine_leave(self, c)
        self._mm_created(result)
        return result

    def _mm_created(self, mm):
        """Called with every MmStruct that was made through the Python API."""

    def file(self, name, data=None, *, size=None, dev=(0, 0), ino=0):
        """A file for ``mmap(file=...)``. Nothing of the host's file system is read.

        :param name: what proc_maps() shows
        :param data: its first bytes; zeroes follow up to `size`
        :param size: bytes; the length of `data` if not given
        """
        cdef const u8[::1] view
        cdef const u8 *p = NULL
        cdef u64 length = 0, total
        cdef file_t *f
        cdef u32 major, minor
        cdef unsigned long number = as_ulong(ino, "ino")
        cdef const char *c_name
        cdef file_object result
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {type(name).__name__}")
        if not name or "\0" in name:
            raise ValueError("name must not be empty nor contain a zero byte")
        major, minor = dev
        if data is None and size is None:
            raise ValueError("a file needs data, a size, or both")
        if data is not None:
            view = as_bytes(data, "data")
            length = view.shape[0]
            if length:
                p = &view[0]
        total = length if size is None else as_ulong(size, "size")
        if total < length:
            raise ValueError(f"size {total} is below the {length} bytes of data")
        if total > 0x7fffffffffffffff:
            raise ValueError(f"size must be below 2**63, not {total}")
        encoded = os.fsencode(name)
        c_name = encoded
        cdef Cpu *c = machine_enter(self, 0)
        try:
            machine_reap(self, c)
            pins_reap(self, self.m, c)
            with nogil:
                f = file_create(c, self.m, c_name, p, length, total, major, minor, number)
            if f == NULL:
                raise MemoryError(f"no memory for a file of {total} bytes")
            result = file_object.__new__(file_object)
            result.f = f
            result.machine = self
            result.name = name
            self.live_files.add(<size_t>f)
            return result
        finally:
            machine_leave(self, c)

    def read_physical(self, paddr, n):
        """`n` bytes of physical memory from address `paddr`. ValueError outside the memory."""
        cdef unsigned long start = as_ulong(paddr, "paddr"), count = as_ulong(n, "n"), end
        machine_get(self)
        try:
            end = self.m.nr_frames << self.m.arch.page_shift
            if start > end or count > end - start:
                raise ValueError(f"[{start:#x}, {start + <object>count:#x}) is not within the {end:#x} bytes of memory")
            return PyBytes_FromStringAndSize(<char *>self.m.mem_base + start, count)
        finally:
            machine_put(self)

    @property
    def physical_memory(self):
        """A read-only memoryview of all physical memory; release() it before close()."""
        return memoryview(self)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("physical memory is read-only")
        machine_get(self)
        self.buffer_shape[0] = self.m.nr_frames << self.m.arch.page_shift
        self.exports += 1
        buffer.buf = self.m.mem_base
        buffer.obj = self
        buffer.len = self.buffer_shape[0]
        buffer.readonly = 1
        buffer.itemsize = 1
        buffer.format = "B"
        buffer.ndim = 1
        buffer.shape = self.buffer_shape
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL
        machine_put(self)

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1

    @property
    def vmstat(self):
        """What happened so far, summed over the CPUs: a dict by name (mm/vmstat.c), and the frames in use now."""
        cdef u32 i
        cdef dict result = {}
        machine_get(self)
        try:
            for name, item in _VM_EVENTS:
                total = 0
                for i in range(self.m.nr_cpus):
                    total += self.m.cpus[i].vm_event[<int>item]
                result[name] = total
            result["nr_used_frames"] = nr_used_pages(self.m)
            result["nr_frames"] = self.m.nr_frames
            return result
        finally:
            machine_put(self)

    @property
    def counters(self):
        """The strategy's counters, summed over the CPUs: attempts, successes, retried, aborts by reason."""
        cdef u32 i, k = 0
        cdef dict result = {}
        machine_get(self)
        try:
            while (k < KMM_STRATEGY_COUNTERS and self.m.strategy.counter_names != NULL
                   and self.m.strategy.counter_names[k] != NULL):
                total = 0
                for i in range(self.m.nr_cpus):
                    total += self.m.cpus[i].strategy_count[k]
                result[self.m.strategy.counter_names[k].decode()] = total
                k += 1
            return result
        finally:
            machine_put(self)

    def validate(self):
        """Check every structure: VMAs, page tables and counts of each address space, page caches, TLBs, object caches,
        free lists.

        Waits for the calls of other threads. Raises :class:`pykmm.InvariantViolation` with what is wrong and where, and
        :class:`pykmm.PluginError` when a lock, a read section or IRQs were left behind by the strategy.
        """
        cdef u32 i
        cdef violation found
        cdef bint settled
        machine_get(self)
        try:
            with nogil:
                for i in range(self.m.nr_cpus):
                    cpu_own(self.m.cpus[i])
            error = left_behind(self.m, "the machine cannot be validated")
            settled = error is None
            with nogil:
                if settled:
                    if self.m.strategy.quiesce != NULL:
                        self.m.strategy.quiesce(self.m.cpus[0], self.m)
                    rcu_barrier(self.m.cpus[0])
                    validate_machine(self.m, &found)
                for i in range(self.m.nr_cpus):
                    cpu_disown(self.m.cpus[i])
            raise_exceptions(self.m)
            if error is not None:
                raise error
            if found.message != NULL:
                raise pykmm_errors().InvariantViolation(found.message.decode(), os.fsdecode(<bytes>found.place))
        finally:
            machine_put(self)

    def __repr__(self):
        if self.m == NULL:
            return "<pykmm Machine, closed>"
        return (f"<pykmm Machine arch={self.m.arch.name.decode()} strategy={self.m.strategy.name.decode()} "
                f"cpus={self.m.nr_cpus} memory={self.m.nr_frames << self.m.arch.page_shift}>")


cdef list _VM_EVENTS = [
    ("pgfault", PGFAULT), ("pgmajfault", PGMAJFAULT), ("pgalloc", PGALLOC), ("pgfree", PGFREE),
    ("nr_pgtable_alloc", NR_PGTABLE_ALLOC), ("nr_pgtable_free", NR_PGTABLE_FREE),
    ("tlb_flush_local", TLB_FLUSH_LOCAL), ("tlb_flush_remote", TLB_FLUSH_REMOTE),
    ("tlb_flush_received", TLB_FLUSH_RECEIVED), ("tlb_hit", TLB_HIT), ("tlb_miss", TLB_MISS),
    ("fault_anon_zero", FAULT_ANON_ZERO), ("fault_anon_write", FAULT_ANON_WRITE), ("fault_file_read", FAULT_FILE_READ),
    ("fault_file_cow", FAULT_FILE_COW), ("fault_file_shared", FAULT_FILE_SHARED), ("fault_wp_reuse", FAULT_WP_REUSE),
    ("fault_wp_copy", FAULT_WP_COPY), ("fault_spurious", FAULT_SPURIOUS), ("fault_around_pages", FAULT_AROUND_PAGES),
    ("fault_sigsegv", FAULT_SIGSEGV), ("fault_sigbus", FAULT_SIGBUS), ("fault_oom", FAULT_OOM),
    ("fault_mmap_sem", FAULT_MMAP_SEM), ("vmacache_find_hits", VMACACHE_FIND_HITS),
    ("vmacache_find_calls", VMACACHE_FIND_CALLS), ("ipi_sent", IPI_SENT), ("ipi_handled", IPI_HANDLED),
    ("nr_foll_pin_acquired", NR_FOLL_PIN_ACQUIRED), ("nr_foll_pin_released", NR_FOLL_PIN_RELEASED),
]


cdef object _shut(Machine self, machine_leaks *leaks):
    """Tear the machine down. Context: GIL held (released meanwhile); no call in progress, no buffer exported.

    Returns what a strategy in Python has raised meanwhile, or None."""
    cdef machine_t *m = self.m
    cdef void *poison = m.poison
    cdef object error = None
    cdef object one
    cdef Cpu *c = m.cpus[0]
    cdef u32 i
    cdef mm_struct *mm
    cdef file_t *f
    self.m = NULL
    leaks[0] = machine_leaks(0, 0, 0, 0, 0, 0, 0)
    error = left_behind(m, "the machine counts as closed, and its memory is never given back")
    if error is not None:
        return error if poison == NULL else None    # whoever uses the machine has heard of it
    with nogil:
        for i in range(m.nr_cpus):
            cpu_own(m.cpus[i])
            switch_mm(m.cpus[i], NULL)
        mm = m.mmlist
        while mm != NULL:
            mmput(c, mm)
            if m.mmlist == mm:
                break           # somebody else holds a reference: reported as a leak
            mm = m.mmlist
        if m.strategy.quiesce != NULL:
            m.strategy.quiesce(c, m)
    for pins in list(self.live_pins.values()) + self.orphan_pins:
        release_pins(m, c, pins[0], pins[1])
    self.live_pins.clear()
    self.orphan_pins.clear()
    for number in list(self.live_files) + self.orphan_files:
        f = <file_t *><size_t>number
        with nogil:
            fput(c, f)
    self.live_files.clear()
    self.orphan_files.clear()
    self.orphan_mms.clear()
    with nogil:
        machine_quiesce(m)
    for i in range(m.nr_cpus):
        one = take_exception(m.cpus[i])
        if error is None:
            error = one
    if m.poison != NULL:
        Py_DECREF(<object>m.poison)
        if poison != NULL:
            error = None    # whoever uses the machine has heard of it
    with nogil:
        machine_destroy(m, leaks)
    return error
