# SPDX-License-Identifier: GPL-2.0-only
"""The plain half of a compiled plugin: hook functions must not be compiled (pluggy passes over them)."""
import pykmm
from reader_only._reader_only import ReaderOnly


@pykmm.hookimpl
def pykmm_register_strategies(registry):
    registry.add("reader_only", ReaderOnly, description="a third party's strategy: every fault under mmap_sem")
