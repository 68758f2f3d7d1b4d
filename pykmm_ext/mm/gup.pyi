# SPDX-License-Identifier: GPL-2.0-only
"""mm/gup.c: compiled core, C API only."""
