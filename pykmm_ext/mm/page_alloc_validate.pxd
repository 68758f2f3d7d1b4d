# SPDX-License-Identifier: GPL-2.0-only
# mm/page_alloc.c: what must hold of the lists when no Cpu runs.
from pykmm_ext.mm.mm_types cimport machine

# Context: quiescent. Buddy lists, counts, alignment, PG_buddy; NULL or a static message with *pfn.
cdef const char *validate_zone(machine *m, unsigned long *pfn) noexcept nogil
