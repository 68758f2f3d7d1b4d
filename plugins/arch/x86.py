# SPDX-License-Identifier: GPL-2.0-only
"""arch/x86: registers the x86-64 backend (its compiled part is ``_x86``)."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.hookspecs import hookimpl

if TYPE_CHECKING:
    from pykmm.plugin import Registry
    from pykmm_ext.arch import Arch


def make_arch() -> Arch:
    """A new x86-64 backend: 4-level page tables, shootdown by IPI, total store order."""
    from pykmm_plugins.arch import _x86

    return _x86.make_arch()


def make_5level_arch() -> Arch:
    """A new x86-64 backend with 5-level page tables: 57-bit addresses, the upper half of them the kernel's."""
    from pykmm_plugins.arch import _x86

    return _x86.make_5level_arch()


def make_paravirt_arch() -> Arch:
    """A new backend of x86-64 as a guest: flushes do not wait for stopped vCPUs, page tables are freed by RCU."""
    from pykmm_plugins.arch import _x86

    return _x86.make_paravirt_arch()


@hookimpl
def pykmm_register_arch(registry: Registry) -> None:
    """Offer the backends under the names ``x86``, ``x86-5level`` and ``x86-paravirt``."""
    registry.add("x86", make_arch, description="x86-64, 4-level page tables, IPI shootdown, TSO")
    registry.add("x86-5level", make_5level_arch,
                 description="x86-64, 5-level page tables (LA57), IPI shootdown, TSO")
    registry.add("x86-paravirt", make_paravirt_arch,
                 description="x86-64 as a guest: flush by hypercall, page tables freed by RCU, TSO")
