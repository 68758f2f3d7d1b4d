# SPDX-License-Identifier: GPL-2.0-only
"""mm/mempolicy.c: compiled core, C API only."""
