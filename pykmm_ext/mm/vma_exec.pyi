# SPDX-License-Identifier: GPL-2.0-only
"""mm/vma_exec.c: compiled core, C API only."""
