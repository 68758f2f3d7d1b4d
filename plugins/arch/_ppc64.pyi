# SPDX-License-Identifier: GPL-2.0-only
"""arch/powerpc: radix page tables of Power ISA 3.0, TLB invalidation by broadcast."""
from pykmm_ext.arch import Arch

class Ppc64(Arch):
    """Power ISA 3.0 radix page tables of 64 KiB pages, tlbie broadcast, tables freed by RCU, weak memory order."""


class Ppc64With4K(Arch):
    """The same with pages of 4 KiB."""


def make_arch() -> Arch:
    """A new ppc64 backend."""


def make_4k_arch() -> Arch:
    """A new ppc64-4k backend."""
