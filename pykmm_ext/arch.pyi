# SPDX-License-Identifier: GPL-2.0-only
"""arch/: the object that carries an arch backend's C table into Python."""
from typing_extensions import disjoint_base

@disjoint_base
class Arch:
    """A compiled arch backend: page-table geometry and entries, TLB flushing, table freeing, memory model.

    :ivar name: what the backend calls itself
    :ivar description: one line for people
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    def geometry(self) -> dict[str, object]:
        """Page-table geometry and address limits, as ``struct arch_ops`` has them.

        :raises RuntimeError: the subclass has set no table of functions
        """
    @property
    def memory_model(self) -> str:
        """The memory model of the check engine that is this arch's: "tso", or "power" for a weak one.

        :raises RuntimeError: the subclass has set no table of functions
        """
