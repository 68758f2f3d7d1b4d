# SPDX-License-Identifier: GPL-2.0-only
"""Registers the compiled arch; hook functions have to be plain Python."""
import pykmm
from x86_low._x86_low import X86Low


@pykmm.hookimpl
def pykmm_register_arch(registry):
    registry.add("x86-low", X86Low, description="x86 with page tables freed by RCU and mappings below 4 GiB")
