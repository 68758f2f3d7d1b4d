# SPDX-License-Identifier: GPL-2.0-only
"""mm/memory.c, zapping: compiled core, C API only."""
