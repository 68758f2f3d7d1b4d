# SPDX-License-Identifier: GPL-2.0-only
"""mm/vma.c: compiled core, C API only."""
