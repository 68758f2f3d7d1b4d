# SPDX-License-Identifier: GPL-2.0-only
"""What the class of a strategy in Python may define, and its methods may return; nothing for Python."""
