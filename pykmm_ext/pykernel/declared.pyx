# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for the C compiler's look at a strategy: what a class may define, and what its methods may return."""
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_Check, PyLong_CheckExact

import difflib
import inspect
import warnings

from pykmm_ext.handle cimport pykmm_errors
from pykmm_ext.mm.mm_types cimport (
    VM_FAULT_BADACCESS, VM_FAULT_BADMAP, VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_NOPAGE, VM_FAULT_OOM, VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
)


# Of difflib: one letter too many, one missing, or two exchanged; not vma_start_read for vma_start_write.
cdef double NEARLY = 0.85


cdef object plugin_error(str strategy, str text):
    return pykmm_errors().PluginError(f"strategy {strategy!r}: {text}", strategy)


# ---- results ----

# What handle_fault() may return, and filemap_fault() in place of a page.
cdef long FAULT_RESULTS = VM_FAULT_ERROR | VM_FAULT_MAJOR | VM_FAULT_NOPAGE | VM_FAULT_BADMAP | VM_FAULT_BADACCESS
cdef long PAGE_RESULTS = VM_FAULT_RETRY | VM_FAULT_SIGBUS | VM_FAULT_OOM
cdef tuple WANTED = ("None", "an int of VM_FAULT_ bits, 0 = resolved", "an int: 0 or a negative errno", "True or False",
                     "how many pages it has pinned", "a PageHandle, or VM_FAULT_RETRY, VM_FAULT_SIGBUS or VM_FAULT_OOM")


cdef long as_result(str strategy, const char *what, int gives, object value) except? -1:
    cdef int overflow = 0
    cdef long number
    if gives == GIVES_NOTHING:
        if value is None:
            return 0
    elif gives == GIVES_BOOL:
        if value is True:
            return 1
        if value is False:
            return 0
    elif PyLong_CheckExact(value) or (PyLong_Check(value) and not isinstance(value, bool)):
        number = PyLong_AsLongAndOverflow(value, &overflow)
        if overflow:
            pass
        elif gives == GIVES_FAULT:
            if not number & ~FAULT_RESULTS:
                return number
        elif gives == GIVES_ERRNO:
            if -4096 < number <= 0:
                return number
        elif gives == GIVES_COUNT:
            if number >= 0:
                return number
        elif number and not number & ~PAGE_RESULTS:
            return number
    raise nonsense(strategy, what.decode() + "()", gives, value)


cdef object nonsense(str strategy, str what, int gives, object value):
    if gives == GIVES_FAULT and isinstance(value, int) and not isinstance(value, bool):
        if value >= 0 and value & ~<object>FAULT_RESULTS == VM_FAULT_RETRY:
            return plugin_error(strategy, f"{what} returned VM_FAULT_RETRY: there is nobody to retry; fall back to "
                                "handle_fault_mmap_sem()")
        return plugin_error(strategy, f"{what} returned {value:#x}, which has bits that are no VM_FAULT_ result")
    try:
        words = repr(value)
    except Exception as error:
        words = f"a {type(value).__name__}, whose __repr__() raises {type(error).__name__}"
    return plugin_error(strategy, f"{what} returned {words}; it has to return {WANTED[gives]}")


# ---- classes ----

# Members of which a strategy has both or none; and those that need another one.
cdef list PAIRS = [("mmap_write_lock", "mmap_write_unlock"), ("vma_write_begin", "vma_write_end"),
                   ("tree_write_begin", "tree_write_end"), ("pte_map_lock", "pte_spinlock")]
cdef list NEEDS = [("mmap_write_downgrade", "mmap_write_lock"), ("filemap_fault", "pte_map_lock")]


cdef int check_members(str strategy, set defined) except -1:
    for pair in PAIRS:
        there = [name for name in pair if name in defined]
        if len(there) == 1:
            raise plugin_error(strategy, f"it defines {there[0]} and not {pair[1 - pair.index(there[0])]}")
    for name, needed in NEEDS:
        if name in defined and needed not in defined:
            raise plugin_error(strategy, f"it defines {name} and not {needed}, without which that is never called")
    return 0


cdef int warn_of_misspelt(str strategy, cls, tuple members, set defined) except -1:
    missing = [name for name in members if name not in defined]
    for name in vars(cls):
        close = [] if name in members or name.startswith("_") else difflib.get_close_matches(name, missing, 1, NEARLY)
        if close:
            warnings.warn(f"strategy {strategy!r} defines {name}, which nothing calls; is it {close[0]}?", UserWarning, 2)
    return 0


cdef int check_method(str strategy, str what, tuple parameters, object self, object method) except -1:
    if (inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method)
            or inspect.isasyncgenfunction(method)):
        raise plugin_error(strategy, f"{what}() is a coroutine or a generator: calling it would run nothing")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):     # a builtin: the call will tell
        return 0
    try:
        signature.bind(self, None, *parameters)
    except TypeError:
        raise plugin_error(
            strategy, f"{what}{signature}: it has to take (self, cpu, {', '.join(parameters)})") from None
    return 0


cdef list counters_of(str strategy, cls, int most):
    counters = getattr(cls, "counters", ())
    if not isinstance(counters, (tuple, list)) or not all(
            [isinstance(name, str) and name and name.isprintable() for name in counters]):
        raise plugin_error(strategy, "counters must be a tuple of names")
    cdef list names = ["attempts", "successes", "retried", *counters]
    if len(set(names)) != len(names):
        raise plugin_error(strategy, "a name is among the counters twice (attempts, successes and retried are automatic)")
    if len(names) > most:
        raise plugin_error(strategy, f"there is room for {most - 3} counters, not {len(counters)}")
    return names


cdef str class_text(cls, str name, type last):
    # Not the descriptor that every Strategy has.
    for base in cls.__mro__:
        if base is last:
            return None
        if name in base.__dict__:
            value = base.__dict__[name]
            if not isinstance(value, str) or not value.isprintable() or not value:
                raise pykmm_errors().PluginError(f"{cls.__qualname__}.{name} must be a string of printable characters, "
                                                 f"not {value!r}")
            return value
    return None
