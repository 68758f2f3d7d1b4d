# SPDX-License-Identifier: GPL-2.0-only
from pykmm_ext.strategy import Strategy

OPTIONS: dict[str, tuple[str, ...]]

class SPFRFC5(Strategy):
    def __init__(self, **options: str) -> None: ...
