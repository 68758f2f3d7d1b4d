# SPDX-License-Identifier: GPL-2.0-only
"""Strategies and arches that are wrong on purpose."""
from typing import Self

from typing_extensions import disjoint_base

from pykmm_ext.arch import Arch
from pykmm_ext.strategy import Strategy

FAULTS: dict[str, str]

@disjoint_base
class BrokenStrategy(Strategy):
    def __new__(cls, fault: str = "none") -> Self: ...

ARCH_FAULTS: dict[str, str]

@disjoint_base
class BrokenArch(Arch):
    def __new__(cls, right: Arch, fault: str = "none") -> Self: ...
