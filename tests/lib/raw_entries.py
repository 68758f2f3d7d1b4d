# SPDX-License-Identifier: GPL-2.0-only
"""Raw entries of page tables, good and bad, of the arch under test; and what its MMU changes in them.

As the manuals have them (sdm_paging, radix_isa), not as pykmm does. Words are as they lie in memory, read as
little-endian numbers.
"""
from __future__ import annotations

from types import ModuleType

import radix_isa
import sdm_paging
from arch_under_test import ARCH, GEOMETRY, LEVELS, PAGE, SHIFTS, is_power
from hypothesis import strategies as st


class X86:
    """Every level has permissions, and A; D is that of the leaf."""

    manual: ModuleType = sdm_paging
    key = LEVELS
    tables_have_a = True
    huge_levels = (1, 2)
    P, RW, US, A, D, PS, PAT_HUGE, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 12, 1 << 63
    everything = P | RW | US | A | D
    leaves = tables = st.sampled_from([P | RW | US, P | US, P | RW, P | RW | US | A, P | RW | US | NX, P | US | A | NX,
                                       0, RW | US | A, P | RW | US | A | D])

    def leaf(self, pfn: int, bits: int) -> int:
        return pfn << 12 | bits

    def table(self, paddr: int, level: int, bits: int) -> int:
        return paddr | bits

    def huge(self, paddr: int, level: int, bits: int) -> int:
        """With the bit between flags and address that is no part of the address."""
        return paddr | self.PAT_HUGE | self.PS | bits

    def old(self, raw: int, level: int) -> int:
        return raw & ~self.A

    def used(self, raw: int, level: int, write: bool) -> int:
        return raw | self.A | (self.D if write and level == 0 else 0)


class Power:
    """Big-endian; permissions, R and C are those of the leaf, and an entry says how large the table below it is."""

    manual: ModuleType = radix_isa
    key = PAGE.bit_length() - 1
    tables_have_a = False
    huge_levels = (1, 2)
    V, L, R, C = 1 << 63, 1 << 62, 0x100, 0x80
    everything = 0xff
    leaves = st.integers(0, 0xff) | st.integers(0, 0xf).map(lambda eaa: 0xc0 | eaa)
    tables = st.sampled_from(["good"] * 12 + ["invalid", "tiny", "short", "long"])
    V_BIT, L_BIT, R_BIT, C_BIT = 0x80, 0x40, 0x20, 0x10

    @staticmethod
    def swap(word: int) -> int:
        return int.from_bytes(word.to_bytes(8, "big"), "little")

    def _flags(self, bits: int) -> int:
        return (bits & 0xf | (self.V if bits & self.V_BIT else 0) | (self.L if bits & self.L_BIT else 0)
                | (self.R if bits & self.R_BIT else 0) | (self.C if bits & self.C_BIT else 0))

    def leaf(self, pfn: int, bits: int) -> int:
        return self.swap(pfn * PAGE | self._flags(bits))

    def table(self, paddr: int, level: int, bits: str) -> int:
        size = GEOMETRY["level_bits"][level - 1]    # type: ignore[index]
        size = {"tiny": 4, "short": size - 1, "long": SHIFTS[level] - SHIFTS[0] + 1}.get(bits, size)
        return self.swap((0 if bits == "invalid" else self.V) | paddr | size)

    def huge(self, paddr: int, level: int, bits: int) -> int:
        return self.swap(paddr | self._flags(bits | self.L_BIT))

    def old(self, raw: int, level: int) -> int:
        return raw if level else self.swap(self.swap(raw) & ~self.R)

    def used(self, raw: int, level: int, write: bool) -> int:
        return raw if level else self.swap(self.swap(raw) | self.R | (self.C if write else 0))


mmu = Power() if is_power(ARCH) else X86()
