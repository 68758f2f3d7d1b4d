# SPDX-License-Identifier: GPL-2.0-only
"""mm/memory.c and mm/mmap.c of the speculative series, what strategies share: compiled core, C API only."""
