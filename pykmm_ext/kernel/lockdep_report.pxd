# SPDX-License-Identifier: GPL-2.0-only
# kernel/locking/lockdep_proc.c: lockdep's reports and graph. Context unless said otherwise: GIL held.
from pykmm_ext.kernel.lockdep cimport lockdep, lockdep_report

# For check_fail(): the kind of violation, and one line of text without figures that differ from run to run.
# Context: any, no GIL. `buf` holds n > 0 bytes; what does not fit is cut.
cdef const char *violation_kind(const lockdep_report *r) noexcept nogil
cdef void violation_message(const lockdep_report *r, char *buf, size_t n) noexcept nogil

# A report as a dict of str, int, bool, None and lists of such dicts: ready for JSON. None for NULL.
cdef object report_dict(const lockdep_report *r)
# The graph as such a dict, and the reverse: what another process found, added to `ld`. Returns the reports, as dicts, of
# what the two have found together.
cdef dict graph_dict(const lockdep *ld)
cdef list merge_graph(lockdep *ld, dict graph)
