# SPDX-License-Identifier: GPL-2.0-only
"""mm/mmap.c, the choice of addresses: compiled core, C API only."""
