# SPDX-License-Identifier: GPL-2.0-only
"""mm/memory.c, copying at fork: compiled core, C API only."""
