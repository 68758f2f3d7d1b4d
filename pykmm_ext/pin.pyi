# SPDX-License-Identifier: GPL-2.0-only
"""Pinned pages as Python objects."""
from types import TracebackType
from typing import Self, SupportsIndex

from typing_extensions import Buffer, disjoint_base

from pykmm_ext.binding import Machine

@disjoint_base
class Pin:
    machine: Machine
    addr: int
    length: int
    write_access: bool
    pfns: tuple[int, ...]
    def __init__(self) -> None: ...
    def read(self, offset: SupportsIndex = 0, n: SupportsIndex | None = None, *, cpu: SupportsIndex = 0) -> bytes: ...
    def write(self, data: Buffer, offset: SupportsIndex = 0, *, cpu: SupportsIndex = 0) -> None: ...
    def unpin(self, *, cpu: SupportsIndex = 0) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None: ...
