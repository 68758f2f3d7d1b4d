# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the unit tests: machines are of the arch under test."""
from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from arch_under_test import ARCH, frames

import pykmm
from pykmm.plugin import get_plugin_manager

Make = Callable[..., pykmm.Machine]


@pytest.fixture(name="machine")
def machine_under_test(machine: Make) -> Make:
    """``pykmm.testing.machine`` on the arch under test. Sizes are for pages of 4 KiB: as many frames of larger ones."""
    def make(arch: str = ARCH, *, memory: str | int = "64M", fault_around: str | int = "64K",
             **options: object) -> pykmm.Machine:
        return machine(arch=arch, memory=frames(memory), fault_around=frames(fault_around), **options)
    return make


@pytest.fixture
def registered() -> Iterator[None]:
    """Strategies may be registered: they are gone afterwards."""
    registry = get_plugin_manager().strategies
    before = dict(registry._entries)
    yield
    registry._entries = before
