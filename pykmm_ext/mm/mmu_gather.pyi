# SPDX-License-Identifier: GPL-2.0-only
"""mm/mmu_gather.c: compiled core, C API only."""
