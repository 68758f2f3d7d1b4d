# SPDX-License-Identifier: GPL-2.0-only
"""mm/khugepaged.c: compiled core, C API only."""
