# SPDX-License-Identifier: GPL-2.0-only
# What the class of a strategy in Python may define, and its methods may return. Not part of the plugin C API.

# What a method returns.
cdef enum:
    GIVES_NOTHING
    GIVES_FAULT
    GIVES_ERRNO
    GIVES_BOOL
    GIVES_COUNT
    GIVES_PAGE              # a PageHandle, or VM_FAULT_ bits

# Context of everything: GIL held. `strategy` is its name, `what` the method's with (), for errors (PluginError).
cdef object plugin_error(str strategy, str text)
# `value` as a number. (GIVES_PAGE: it is no PageHandle.)
cdef long as_result(str strategy, const char *what, int gives, object value) except? -1
# A class attribute that is a text, or None; `last`: whose own attributes do not count.
cdef str class_text(cls, str name, type last)
# Can method(self, cpu, *parameters) be called?
cdef int check_method(str strategy, str what, tuple parameters, object self, object method) except -1
# Pairs are whole, and what needs another member has it. `defined`: the members that there are.
cdef int check_members(str strategy, set defined) except -1
# A warning for what is nearly called as one of `members`, which the class has not.
cdef int warn_of_misspelt(str strategy, cls, tuple members, set defined) except -1
# Names of all counters.
cdef list counters_of(str strategy, cls, int most)
