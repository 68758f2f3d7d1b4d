# SPDX-License-Identifier: GPL-2.0-only
from typing import Self

from typing_extensions import disjoint_base

from pykmm_ext.strategy import Strategy

OPTIONS: dict[str, tuple[str, ...]]

@disjoint_base
class LocklessGup(Strategy):
    def __new__(cls, **options: str) -> Self: ...
