# SPDX-License-Identifier: GPL-2.0-only
"""Fault strategies written in Python."""
from typing import Any, Final, Self

from typing_extensions import disjoint_base

from pykmm_ext.strategy import Strategy

#: Members of struct strategy_ops that a class may define.
MEMBERS: Final[tuple[str, ...]]

@disjoint_base
class PythonStrategy(Strategy):
    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
