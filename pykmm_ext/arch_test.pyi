# SPDX-License-Identifier: GPL-2.0-only
"""An arch that no processor has."""
from typing import Self

from typing_extensions import disjoint_base

from pykmm_ext.arch import Arch

@disjoint_base
class OddArch(Arch):
    def __new__(cls, of: Arch) -> Self: ...
