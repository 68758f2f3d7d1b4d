# SPDX-License-Identifier: GPL-2.0-only
"""mm/mmap.c, the mappings that grow: compiled core, C API only."""
