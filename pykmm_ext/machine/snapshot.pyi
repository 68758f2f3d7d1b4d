# SPDX-License-Identifier: GPL-2.0-only
"""Copying a machine back to how it was, and naming what lies in it: compiled core, C API only."""
