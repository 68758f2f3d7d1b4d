# SPDX-License-Identifier: GPL-2.0-only
"""arch/x86: 4- and 5-level x86-64 page tables and TLB shootdown by IPI."""
from pykmm_ext.arch import Arch

class X86(Arch):
    """x86-64 with 4-level page tables of 4 KiB pages, shootdown by IPI, total store order."""


class X865Level(Arch):
    """x86-64 with 5-level page tables (LA57): 56 bits of user addresses."""


class X86Paravirt(Arch):
    """x86-64 as a guest: flushes do not interrupt stopped vCPUs, page tables are freed by RCU."""


def make_5level_arch() -> Arch:
    """A new x86-5level backend."""


def make_paravirt_arch() -> Arch:
    """A new x86-paravirt backend."""


def make_arch() -> Arch:
    """A new x86 backend."""
