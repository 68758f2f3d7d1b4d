# SPDX-License-Identifier: GPL-2.0-only
"""mm/slab.c: typed object caches with per-CPU magazines.

No names for Python: the contracts are in the .pxd."""
