# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/rwsem.c: the fair reader/writer semaphore.

No names for Python: the contracts are in the .pxd."""
