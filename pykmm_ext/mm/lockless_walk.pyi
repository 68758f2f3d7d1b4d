# SPDX-License-Identifier: GPL-2.0-only
"""Lockless walks of page tables: compiled core, C API only."""
