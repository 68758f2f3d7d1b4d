# SPDX-License-Identifier: GPL-2.0-only
"""A machine in one region, and its shadow: compiled core, C API only."""
