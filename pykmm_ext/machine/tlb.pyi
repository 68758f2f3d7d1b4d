# SPDX-License-Identifier: GPL-2.0-only
"""The MMU of one Cpu: compiled core, C API only."""
