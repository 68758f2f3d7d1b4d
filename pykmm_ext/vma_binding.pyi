# SPDX-License-Identifier: GPL-2.0-only
"""The Python face of a mapping: Vma."""
from typing_extensions import disjoint_base

@disjoint_base
class Vma:
    start: int
    end: int
    vm_flags: int
    offset: int
    ino: int
    prot: int
    shared: bool
    dev_major: int
    dev_minor: int
    name: str
    def __init__(self) -> None: ...
    @property
    def flags(self) -> int: ...
    @property
    def file(self) -> str | None: ...
    @property
    def perms(self) -> str: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
