# SPDX-License-Identifier: GPL-2.0-only
"""include/linux/lockdep.h: which class a lock of the mm has, and what each lock operation and event means to it."""

def known_locks() -> list[tuple[str, int, str, str]]: ...
