# SPDX-License-Identifier: GPL-2.0-only
"""kernel/rcu: grace periods over the per-CPU reader words of rcu.h.

No names for Python: the contracts are in the .pxd."""
