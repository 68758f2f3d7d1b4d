# SPDX-License-Identifier: GPL-2.0-only
"""include/linux/pgtable.h: compiled core, C API only."""
