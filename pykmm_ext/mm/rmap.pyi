# SPDX-License-Identifier: GPL-2.0-only
"""mm/rmap.c: compiled core, C API only."""
