# SPDX-License-Identifier: GPL-2.0-only
"""lib/rbtree.c: the augmented red-black tree.

No names for Python: the contracts are in the .pxd."""
