# SPDX-License-Identifier: GPL-2.0-only
"""The arch that tests of the mm run on: x86, or what PYKMM_TEST_ARCH names (test_arches.py names every other)."""
from __future__ import annotations

import os
from typing import cast

from pykmm.plugin import get_plugin_manager
from pykmm_ext.arch import Arch

ARCH = os.environ.get("PYKMM_TEST_ARCH", "x86")


def make_arch() -> Arch:
    """A new backend."""
    return cast(Arch, get_plugin_manager().arches.make(ARCH))


GEOMETRY = make_arch().geometry()
PAGE = 1 << cast(int, GEOMETRY["page_shift"])
TABLE = 1 << cast("tuple[int, ...]", GEOMETRY["level_shift"])[1]     # what a PTE table maps


def frames(of_4k: int | str) -> int:
    """Bytes of memory: as many frames as `of_4k` bytes, or "16M", have of 4 KiB."""
    from pykmm.machine import parse_size

    return parse_size(of_4k) // 4096 * PAGE
