# SPDX-License-Identifier: GPL-2.0-only
"""mm/madvise.c: compiled core, C API only."""
