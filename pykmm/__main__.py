# SPDX-License-Identifier: GPL-2.0-only
"""``python -m pykmm``: the command ``pykmm``."""
from pykmm.cli import main

if __name__ == "__main__":
    main()
