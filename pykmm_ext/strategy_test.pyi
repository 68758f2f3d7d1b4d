# SPDX-License-Identifier: GPL-2.0-only
from typing import Final, Self

from typing_extensions import disjoint_base

from pykmm_ext.strategy import Strategy

MISTAKES: Final[tuple[str, ...]]

@disjoint_base
class Mistake(Strategy):
    def __new__(cls, what: str) -> Self: ...
