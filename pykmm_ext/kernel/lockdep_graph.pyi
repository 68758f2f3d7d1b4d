# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/lockdep.c, the graph: nodes, edges, the search for cycles, and IRQ usage.

No names for Python: the contracts are in the .pxd."""
