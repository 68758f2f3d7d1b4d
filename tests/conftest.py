# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the whole test suite."""
import os

from pykmm.testing import machine

__all__ = ["machine"]

# `python -c` puts the working directory in front of sys.path. In a checkout that is the source tree, which has
# no compiled modules and would hide the installed pykmm from the interpreters that tests start.
os.environ.setdefault("PYTHONSAFEPATH", "1")
