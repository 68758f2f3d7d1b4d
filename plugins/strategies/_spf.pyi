# SPDX-License-Identifier: GPL-2.0-only
from typing import Self

from pykmm_ext.strategy import Strategy

OPTIONS: dict[str, tuple[str, ...]]

class SPF(Strategy):
    def __new__(cls, **options: str) -> Self: ...
