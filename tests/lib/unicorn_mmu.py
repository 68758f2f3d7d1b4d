# SPDX-License-Identifier: GPL-2.0-only
"""An x86-64 processor that is not pykmm's (QEMU's, through unicorn) on a copy of a machine's memory.

It runs in ring 3, with paging as the kernel sets it up: PAE, NX, write-protect, LA57 where asked for. The code that
makes the accesses lies beyond the machine's memory and in the upper half of the address space, which belongs to the
kernel: one entry of the root table, in the copy only.
"""
from __future__ import annotations

import ctypes
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, Uc, x86_const

P, RW, US, A, D = 1, 2, 4, 1 << 5, 1 << 6
KERNEL = 0x40000000                 # physical address of what is ours
CODE, STACK = 0x4000, 0x5000        # offsets of the access code and of ring 0's stack
CR0 = 1 << 31 | 1 << 16 | 1 << 5 | 1            # PG, WP, NE, PE
CR4_PAE, CR4_LA57 = 1 << 5, 1 << 12
EFER = 1 << 11 | 1 << 10 | 1 << 8 | 1           # NXE, LMA, LME, SCE
EFER_MSR = 0xc0000080
USER_CS, USER_SS = 0x18 | 3, 0x20 | 3
#: mov al, [rdi] / mov [rdi], al
LOAD, STORE = b"\x8a\x07", b"\x88\x07"
IRETQ = b"\x48\xcf"
NO_FAULT = 0x8000dead0001      # no address of an access
READ, WRITE, EXEC = "r", "w", "x"


class UnicornMMU:
    """`size` bytes of memory under a processor whose CR3 is `root`; `levels` of tables."""

    def __init__(self, size: int, root: int, levels: int) -> None:
        self.memory = (ctypes.c_ubyte * size)()
        self.size, self.root, self.levels = size, root, levels
        self.base = -(1 << (47 if levels == 4 else 56)) & (1 << 64) - 1     # the first address of the upper half
        self.uc = uc = Uc(UC_ARCH_X86, UC_MODE_64)
        uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_ICELAKE_SERVER)
        uc.mem_map_ptr(0, size, UC_PROT_ALL, ctypes.cast(self.memory, ctypes.c_void_p))
        uc.mem_map(KERNEL, 0x10000, UC_PROT_ALL)
        # Our tables, one a level below the root, from KERNEL on; the last maps 16 pages from KERNEL on.
        for level in range(levels - 2, -1, -1):
            at = KERNEL + 0x1000 * (levels - 2 - level)
            if level:
                uc.mem_write(at, self._word(at + 0x1000 | P | RW | US | A))
            else:
                for page in range(16):
                    uc.mem_write(at + 8 * page, self._word(KERNEL + 0x1000 * page | P | RW | US | A | D))
        uc.mem_write(KERNEL + CODE, LOAD + STORE + IRETQ)
        gdt = KERNEL + 0x6000
        for selector, descriptor in ((0x08, 0x00af9b000000ffff), (0x10, 0x00cf93000000ffff),    # ring 0: code, data
                                     (0x18, 0x00affb000000ffff), (0x20, 0x00cff3000000ffff)):   # ring 3
            uc.mem_write(gdt + selector, self._word(descriptor))
        self.load(bytes(size))
        uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, self.base + 0x6000, 0x2f, 0))
        uc.reg_write(x86_const.UC_X86_REG_MSR, (EFER_MSR, EFER))
        uc.reg_write(x86_const.UC_X86_REG_CR4, CR4_PAE | (CR4_LA57 if levels == 5 else 0))
        uc.reg_write(x86_const.UC_X86_REG_CR3, root)
        uc.reg_write(x86_const.UC_X86_REG_CR0, CR0)
        assert uc.reg_read(x86_const.UC_X86_REG_CR4) & CR4_LA57 == (CR4_LA57 if levels == 5 else 0)
        self._enter_ring_3()
        uc.hook_add(UC_HOOK_INTR, lambda uc, number, data: uc.emu_stop())

    @staticmethod
    def _word(value: int) -> bytes:
        return value.to_bytes(8, "little")

    def _enter_ring_3(self) -> None:
        code = self.base + CODE
        frame = b"".join(map(self._word, (code, USER_CS, 2, 0, USER_SS)))
        self.uc.mem_write(KERNEL + STACK, frame)
        self.uc.reg_write(x86_const.UC_X86_REG_RSP, self.base + STACK)
        self.uc.emu_start(code + 4, code, count=1)
        assert self.uc.reg_read(x86_const.UC_X86_REG_CS) == USER_CS

    def load(self, memory: Any) -> None:
        """The machine's memory as it is now, and no translation left of what was."""
        ctypes.memmove(self.memory, bytes(memory), self.size)
        at = self.root + 8 * 256        # the first entry of the upper half
        self.saved = bytes(self.memory[at:at + 8])
        ctypes.memmove(ctypes.addressof(self.memory) + at, self._word(KERNEL | P | RW | US | A), 8)
        self.uc.reg_write(x86_const.UC_X86_REG_CR3, self.root)

    def contents(self) -> bytes:
        """The copy, as the machine's memory would be now."""
        ctypes.memmove(ctypes.addressof(self.memory) + self.root + 8 * 256, self.saved, 8)
        return bytes(self.memory)

    def access(self, address: int, how: str, value: int = 0) -> int | None:
        """One byte read, written, or executed (it must be an instruction of one byte); None: a page fault there."""
        uc = self.uc
        code = self.base + CODE
        uc.reg_write(x86_const.UC_X86_REG_RDI, address)
        uc.reg_write(x86_const.UC_X86_REG_RAX, value)
        uc.reg_write(x86_const.UC_X86_REG_CR2, NO_FAULT)
        begin = {READ: code, WRITE: code + 2, EXEC: address}[how]
        end = begin + (1 if how == EXEC else 2)
        uc.emu_start(begin, end, count=1)
        # CR2, not the number of the exception: nobody takes the fault, so the processor calls the next one a double
        # fault, and shuts down at the third.
        where = uc.reg_read(x86_const.UC_X86_REG_CR2)
        assert uc.reg_read(x86_const.UC_X86_REG_CS) == USER_CS
        assert uc.reg_read(x86_const.UC_X86_REG_RIP) == (end if where == NO_FAULT else begin)
        if where != NO_FAULT:
            assert where == address
            return None
        return int(uc.reg_read(x86_const.UC_X86_REG_RAX)) & 0xff
