# SPDX-License-Identifier: GPL-2.0-only
"""What a tape's accesses may see: nothing of it is seen from Python."""
