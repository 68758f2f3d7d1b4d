# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for the direct calls of a kernel patched with one fault design: the object that carries a strategy's table.

`Strategy` holds data only. It gets no ``cdef`` methods, ever: a changed vtable would make a plugin that was
compiled against an older pykmm call the wrong function without any warning.
"""

cimport cython
from libc.string cimport memcpy, strcmp

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dlfcn.h>
    #include "kmm/strategy.h"
    static const struct kmm_abi kmm_abi_core = KMM_ABI_INIT;
    static const void *kmm_module_of(const void *function)
    {
        Dl_info info;
        return dladdr(function, &info) ? info.dli_fname : NULL;
    }
    static const struct kmm_abi *kmm_stamp_of(const char *file)
    {
        void *module = dlopen(file, RTLD_LAZY | RTLD_NOLOAD);
        const struct kmm_abi *stamp = module ? dlsym(module, "kmm_abi_stamp") : NULL;
        if (module)
            dlclose(module);    /* it is loaded: this gives back what dlopen() has counted */
        return stamp;
    }
    """
    cdef struct kmm_abi_entry:
        const char *name
        unsigned int bytes
    cdef struct kmm_abi:
        unsigned int magic, count
        kmm_abi_entry *entry
    const kmm_abi kmm_abi_core
    const char *kmm_module_of(const void *function)
    const kmm_abi *kmm_stamp_of(const char *file)


cdef class Strategy:
    """A fault strategy: who may resolve a page fault under which locks, and what VMA writers owe for it.

    A compiled strategy is a subclass whose ``__cinit__`` sets ``ops`` (a static ``strategy_ops`` table, see
    ``kmm/strategy.h``), ``name`` and ``description``. One object may serve any number of machines.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def counter_names(self) -> tuple[str, ...]:
        """Names of the strategy's counters, in the order of ``Cpu.strategy_count``.

        The first three are attempts, successes and faults retried under ``mmap_sem``; the rest are reasons.
        """
        names = []
        cdef int i = 0
        if self.ops == NULL or self.ops.counter_names == NULL:
            return ()
        while self.ops.counter_names[i] != NULL:
            names.append((<bytes>self.ops.counter_names[i]).decode())
            i += 1
        return tuple(names)


# Context: any; the GIL is not needed but s must be alive. NULL for a Strategy that has set no table.
cdef const strategy_ops *strategy_get_ops(Strategy s) noexcept:
    return s.ops


cdef dict strategy_parse_options(Strategy s, str name, dict known, dict given):
    cdef dict index = dict.fromkeys(known, 0)
    for option, value in given.items():
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; known: {', '.join(known)}")
        if value not in known[option]:
            raise ValueError(f"{name}: {option} is {' or '.join(known[option])}, not {value!r}")
        index[option] = known[option].index(value)
    s.name = f"{name}[{','.join(f'{option}={value}' for option, value in given.items())}]" if given else name
    return index


# Members of which a table has both or none. (mmap_write_unlock alone is possible: down_write() and what it undoes.)
cdef int half_of_a_pair(const strategy_ops *ops, str name) except -1:
    cdef list halves = [
        ("pte_map_lock", "pte_spinlock", ops.pte_map_lock != NULL, ops.pte_spinlock != NULL),
        ("vma_write_begin", "vma_write_end", ops.vma_write_begin != NULL, ops.vma_write_end != NULL),
        ("tree_write_begin", "tree_write_end", ops.tree_write_begin != NULL, ops.tree_write_end != NULL)]
    for first, second, has_first, has_second in halves:
        if has_first != has_second:
            raise plugin_error(name, f"its table has {first if has_first else second} and no "
                               f"{second if has_first else first}")
    if ops.munmap_downgrade and ops.mmap_write_unlock != NULL and ops.mmap_write_downgrade == NULL:
        raise plugin_error(name, "munmap_downgrade needs an mmap_write_downgrade() beside mmap_write_unlock()")
    return 0


cdef object plugin_error(str name, str text):
    import pykmm.errors
    return pykmm.errors.PluginError(f"strategy {name!r}: {text}", name)


# Tables of older plugins, at full length: address of the plugin's: (copy, the Strategy, which keeps the plugin's alive).
cdef dict widened = {}
# Functions whose module has the right stamp. (Modules are never unloaded; a table's memory may be another one's later.)
cdef set stamped = set()


@cython.final
@cython.internal
cdef class _Table:
    cdef strategy_ops ops


cdef int check_stamp(const void *function, str name) except -1:
    cdef const char *file = <const char *>kmm_module_of(function)
    cdef const kmm_abi *stamp
    cdef unsigned int i
    if file == NULL:
        raise plugin_error(name, "its handle_fault lies in no module that is loaded")
    where = file.decode("utf-8", "replace")
    stamp = kmm_stamp_of(file)
    if stamp == NULL or stamp.magic != kmm_abi_core.magic or stamp.count != kmm_abi_core.count:
        raise plugin_error(name, f"{where} was compiled against another pykmm; compile it again")
    for i in range(stamp.count):
        if strcmp(stamp.entry[i].name, kmm_abi_core.entry[i].name) != 0 or (
                stamp.entry[i].bytes != kmm_abi_core.entry[i].bytes):
            what = "its headers are others"
            if i < stamp.count - 1:
                what = (f"{stamp.entry[i].name.decode()} has {stamp.entry[i].bytes} bytes there and "
                        f"{kmm_abi_core.entry[i].bytes} here")
            raise plugin_error(name, f"{where} was compiled against another pykmm: {what}; compile it again")
    return 0


cdef const strategy_ops *strategy_check_ops(Strategy s) except NULL:
    cdef const strategy_ops *ops = s.ops
    cdef size_t least = <size_t>&(<strategy_ops *>NULL).pte_map_lock     # up to handle_fault, which every table has
    cdef _Table copy
    cdef str name = s.name if s.name is not None else type(s).__name__
    if ops == NULL:
        raise plugin_error(name, f"{type(s).__name__} has set no table (self.ops)")
    if <size_t>ops in widened:
        copy = widened[<size_t>ops][0]
        return &copy.ops
    if ops.size > sizeof(strategy_ops):
        raise plugin_error(name, f"its table has {ops.size} bytes and this pykmm knows {sizeof(strategy_ops)}: it was "
                           "compiled against a newer pykmm, or never set ops.size = sizeof(strategy_ops)")
    if ops.size < least or ops.size % sizeof(void *):
        raise plugin_error(name, f"its table says that it has {ops.size} bytes; it has to say ops.size = "
                           "sizeof(strategy_ops)")
    if ops.handle_fault == NULL:
        raise plugin_error(name, "its table has no handle_fault")
    if ops.name == NULL:
        raise plugin_error(name, "its table has no name")
    if <size_t>ops.handle_fault not in stamped:
        check_stamp(<const void *>ops.handle_fault, name)
        stamped.add(<size_t>ops.handle_fault)
    if ops.size == sizeof(strategy_ops):
        half_of_a_pair(ops, name)
        return ops
    copy = _Table.__new__(_Table)
    memcpy(&copy.ops, ops, ops.size)
    copy.ops.size = sizeof(strategy_ops)
    half_of_a_pair(&copy.ops, name)
    widened[<size_t>ops] = (copy, s)
    return &copy.ops
