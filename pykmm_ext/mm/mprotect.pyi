# SPDX-License-Identifier: GPL-2.0-only
"""mm/mprotect.c: compiled core, C API only."""
