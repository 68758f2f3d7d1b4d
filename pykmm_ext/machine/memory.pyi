# SPDX-License-Identifier: GPL-2.0-only
"""Physical memory and the life of a machine: compiled core, C API only."""
