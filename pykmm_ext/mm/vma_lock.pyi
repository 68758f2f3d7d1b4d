# SPDX-License-Identifier: GPL-2.0-only
"""include/linux/mmap_lock.h and mm/mmap_lock.c, what both forms of per-VMA locks share: compiled core, C API only."""
