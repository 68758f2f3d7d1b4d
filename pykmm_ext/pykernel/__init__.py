# SPDX-License-Identifier: GPL-2.0-only
"""What Python code of a strategy calls, by kernel file; public as :mod:`pykmm.kernel`."""
