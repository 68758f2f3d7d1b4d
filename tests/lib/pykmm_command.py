# SPDX-License-Identifier: GPL-2.0-only
"""The command ``pykmm`` in a process of its own."""
from __future__ import annotations

import os
import subprocess
import sys


def pykmm(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pykmm.cli", *map(str, arguments)], capture_output=True, text=True,
                          check=False, env={**os.environ, "COLUMNS": "150", **environment})


def fails(*arguments: object) -> str:
    """Exit status 2, nothing on standard output, a message without a traceback: the message."""
    done = pykmm(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr
