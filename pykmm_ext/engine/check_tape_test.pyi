# SPDX-License-Identifier: GPL-2.0-only
"""Broken parts for tests."""
from typing import Self

from typing_extensions import disjoint_base

from pykmm_ext.arch import Arch
from pykmm_ext.strategy import Strategy

@disjoint_base
class BrokenArch(Arch):
    def __new__(cls, base: Arch) -> Self: ...

@disjoint_base
class BrokenStrategy(Strategy):
    def __new__(cls, base: Strategy, mistake: str) -> Self: ...
