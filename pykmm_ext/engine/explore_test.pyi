# SPDX-License-Identifier: GPL-2.0-only
from collections.abc import Callable
from typing import Final

from typing_extensions import disjoint_base

from pykmm_ext.engine.check import Program

@disjoint_base
class PythonInTheMiddle(Program):
    log: Final[list[str]]
    def __new__(cls, function: Callable[[PythonInTheMiddle, int], object]) -> PythonInTheMiddle: ...
    def inner(self, id: int, lock: int) -> None: ...
