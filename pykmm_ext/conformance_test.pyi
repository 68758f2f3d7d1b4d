# SPDX-License-Identifier: GPL-2.0-only
"""Strategies that are wrong on purpose."""
from typing_extensions import disjoint_base

from pykmm_ext.strategy import Strategy

FAULTS: dict[str, str]

@disjoint_base
class BrokenStrategy(Strategy):
    def __init__(self, fault: str = "none") -> None: ...
