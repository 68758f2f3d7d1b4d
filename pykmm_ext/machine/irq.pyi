# SPDX-License-Identifier: GPL-2.0-only
"""kernel/smp.c: cross-CPU function calls, by IPIs that the sender may deliver itself.

No names for Python: the contracts are in the .pxd."""
