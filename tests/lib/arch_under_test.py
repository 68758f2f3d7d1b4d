# SPDX-License-Identifier: GPL-2.0-only
"""The arch that tests of the mm run on: x86, or what PYKMM_TEST_ARCH names (test_arches.py names every other).

"odd" is none of pykmm's: what it has in common with none of them is what nothing but a backend may know.
"""
from __future__ import annotations

import os
from typing import cast

from pykmm.hookspecs import hookimpl
from pykmm.plugin import Registry, get_plugin_manager
from pykmm_ext.arch import Arch
from pykmm_ext.arch_test import OddArch

ARCH = os.environ.get("PYKMM_TEST_ARCH", "x86")


class Odd:
    """A plugin."""

    @staticmethod
    @hookimpl
    def pykmm_register_arch(registry: Registry) -> None:
        registry.add("odd", lambda: OddArch(get_plugin_manager().arches.make("x86")), description="of the tests")


def add_odd() -> None:
    """The arch "odd", in this process."""
    if not get_plugin_manager().has_plugin("arch.odd"):
        get_plugin_manager().add_plugin(Odd, "arch.odd")


if ARCH == "odd":
    add_odd()


def make_arch() -> Arch:
    """A new backend."""
    return cast(Arch, get_plugin_manager().arches.make(ARCH))


GEOMETRY = make_arch().geometry()
PAGE = 1 << cast(int, GEOMETRY["page_shift"])
TASK_SIZE = cast(int, GEOMETRY["task_size"])
MAP_WINDOW = cast(int, GEOMETRY["map_window"])
LEVELS = cast(int, GEOMETRY["levels"])
SHIFTS = cast("tuple[int, ...]", GEOMETRY["level_shift"])
TABLE = 1 << SHIFTS[1]      # what a PTE table maps
#: Does a flush interrupt the other CPUs? Else it changes their TLBs itself.
INTERRUPTS = not GEOMETRY["tlb_broadcast"]


ROOT = max(1, (8 << cast("tuple[int, ...]", GEOMETRY["level_bits"])[LEVELS - 1]) // PAGE)   # frames of the root table


def is_(what: str, pte: int) -> bool:
    """What the arch's pte_write(), pte_dirty() ... say of a raw entry."""
    from pykmm_ext.machine.machine_test import entry

    return bool(entry(make_arch(), f"pte_{what}", pte))


def is_power(name: str) -> bool:
    """Has the arch of that name the page tables of the Power ISA? Else they are those of x86-64."""
    return name.startswith("ppc64")


def in_memory(entry: int) -> int:
    """An entry of mm.walk() as it lies in memory, on a little-endian host: what the functions of an arch take."""
    return int.from_bytes(entry.to_bytes(8, "big"), "little") if GEOMETRY["big_endian"] else entry


def frames(of_4k: int | str) -> int:
    """Bytes of memory: as many frames as `of_4k` bytes, or "16M", have of 4 KiB."""
    from pykmm.machine import parse_size

    return parse_size(of_4k) // 4096 * PAGE
