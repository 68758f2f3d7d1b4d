# SPDX-License-Identifier: GPL-2.0-only
"""Registers the compiled strategy; hook functions have to be plain Python."""
import pykmm
from vma_lock_c._vma_lock import VmaLock


@pykmm.hookimpl
def pykmm_register_strategies(registry):
    registry.add("vma-lock-c", VmaLock)
