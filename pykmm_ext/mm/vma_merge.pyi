# SPDX-License-Identifier: GPL-2.0-only
"""mm/vma.c, merging and splitting: compiled core, C API only."""
