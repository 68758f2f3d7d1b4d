# SPDX-License-Identifier: GPL-2.0-only
"""Fault strategies in Python: the class to derive from. What its methods call is in :mod:`pykmm.kernel`."""
from __future__ import annotations

from pykmm_ext.pystrategy import MEMBERS, PythonStrategy

__all__ = ["MEMBERS", "PythonStrategy"]
