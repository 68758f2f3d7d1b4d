# SPDX-License-Identifier: GPL-2.0-only
"""mm/mmap.c: compiled core, C API only."""
