# SPDX-License-Identifier: GPL-2.0-only
"""arch/powerpc: registers the 64-bit Power backends (their compiled part is ``_ppc64``)."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.hookspecs import hookimpl

if TYPE_CHECKING:
    from pykmm.plugin import Registry
    from pykmm_ext.arch import Arch


def make_arch() -> Arch:
    """A new backend: radix page tables of 64 KiB pages, flushes broadcast without IPIs, weak memory order."""
    from pykmm_plugins.arch import _ppc64

    return _ppc64.make_arch()


def make_4k_arch() -> Arch:
    """The same with pages of 4 KiB."""
    from pykmm_plugins.arch import _ppc64

    return _ppc64.make_4k_arch()


@hookimpl
def pykmm_register_arch(registry: Registry) -> None:
    """Offer the backends under the names ``ppc64`` and ``ppc64-4k``."""
    registry.add("ppc64", make_arch,
                 description="Power ISA 3.0 radix, 64K pages, tlbie broadcast, page tables freed by RCU, weak memory")
    registry.add("ppc64-4k", make_4k_arch,
                 description="Power ISA 3.0 radix, 4K pages, tlbie broadcast, page tables freed by RCU, weak memory")
