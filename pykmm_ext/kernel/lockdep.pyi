# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/lockdep.c: lock classes, the graph of their order, and what may be done while one is held.

No names for Python: the contracts are in the .pxd."""
