# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/lockdep.c's hooks in lock operations, for a machine.

No names for Python: the contracts are in the .pxd."""
