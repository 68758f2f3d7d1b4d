# SPDX-License-Identifier: GPL-2.0-only
"""mm/page_alloc.c: compiled core, C API only."""
