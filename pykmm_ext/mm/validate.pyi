# SPDX-License-Identifier: GPL-2.0-only
"""mm/debug_vm_pgtable.c: compiled core, C API only."""
