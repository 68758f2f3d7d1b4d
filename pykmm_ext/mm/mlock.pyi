# SPDX-License-Identifier: GPL-2.0-only
"""mm/mlock.c: compiled core, C API only."""
