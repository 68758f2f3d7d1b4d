# SPDX-License-Identifier: GPL-2.0-only
"""Per-VMA locks: Linux 6.4's rwsem in each VMA, and Linux 6.15's reference count."""
from __future__ import annotations

from typing import Any

from pykmm.hookspecs import hookimpl
from pykmm_plugins.strategies._per_vma_lock import OPTIONS, PerVMALock
from pykmm_plugins.strategies._per_vma_lock_refcount import OPTIONS as REFCOUNT_OPTIONS
from pykmm_plugins.strategies._per_vma_lock_refcount import PerVMALockRefcount


@hookimpl
def pykmm_register_strategies(registry: Any) -> None:
    """Register ``per_vma_lock`` and ``per_vma_lock-refcount`` with their options."""
    registry.add("per_vma_lock", PerVMALock, "faults under a lock of their VMA, an rwsem in each (Linux 6.4)",
                 options=OPTIONS)
    registry.add("per_vma_lock-refcount", PerVMALockRefcount,
                 "faults under a lock of their VMA, a reference count in each (Linux 6.15)", options=REFCOUNT_OPTIONS)
