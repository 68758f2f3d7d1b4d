# SPDX-License-Identifier: GPL-2.0-only
"""Speculative page faults: RFC v5 of 2017 exactly as posted, and before and after its fixes."""
from __future__ import annotations

from typing import Any

from pykmm.hookspecs import hookimpl
from pykmm_plugins.strategies._spf_rfc5 import OPTIONS, SPFRFC5


@hookimpl
def pykmm_register_strategies(registry: Any) -> None:
    """Register ``spf-rfc5`` and its options."""
    registry.add("spf-rfc5", SPFRFC5, "speculative faults exactly as posted in RFC v5, with options; for study",
                 options=OPTIONS)
