# SPDX-License-Identifier: GPL-2.0-only
"""Broken parts for tests."""
from typing import Self

from pykmm_ext.arch import Arch
from pykmm_ext.strategy import Strategy

class BrokenArch(Arch):
    def __new__(cls, base: Arch) -> Self: ...

class BrokenStrategy(Strategy):
    def __new__(cls, base: Strategy, mistake: str) -> Self: ...
