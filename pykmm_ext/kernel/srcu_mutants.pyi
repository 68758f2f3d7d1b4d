# SPDX-License-Identifier: GPL-2.0-only
"""kernel/rcu/srcutree.c: sleepable RCU.

No names for Python: the contracts are in the .pxd."""
