# SPDX-License-Identifier: GPL-2.0-only
"""mm/mremap.c: compiled core, C API only."""
