# SPDX-License-Identifier: GPL-2.0-only
"""Strategies and arches that are wrong on purpose."""
from typing_extensions import disjoint_base

from pykmm_ext.arch import Arch
from pykmm_ext.strategy import Strategy

FAULTS: dict[str, str]

@disjoint_base
class BrokenStrategy(Strategy):
    def __init__(self, fault: str = "none") -> None: ...

ARCH_FAULTS: dict[str, str]

@disjoint_base
class BrokenArch(Arch):
    def __init__(self, right: Arch, fault: str = "none") -> None: ...
