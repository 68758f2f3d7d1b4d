# SPDX-License-Identifier: GPL-2.0-only
"""The object that carries a fault strategy's C table into Python."""
from typing_extensions import disjoint_base

@disjoint_base
class Strategy:
    """A fault strategy: who may resolve a page fault under which locks, and what VMA writers owe for it.

    :ivar name: what the strategy calls itself
    :ivar description: one line for people
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def counter_names(self) -> tuple[str, ...]: ...
