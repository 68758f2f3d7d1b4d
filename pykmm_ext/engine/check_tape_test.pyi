# SPDX-License-Identifier: GPL-2.0-only
"""Broken parts for tests."""
from pykmm_ext.arch import Arch
from pykmm_ext.strategy import Strategy

class BrokenArch(Arch):
    def __init__(self, base: Arch) -> None: ...

class BrokenStrategy(Strategy):
    def __init__(self, base: Strategy, mistake: str) -> None: ...
