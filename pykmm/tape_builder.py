# SPDX-License-Identifier: GPL-2.0-only
"""Writing tapes by hand: symbolic addresses and one method per system call. Use it through :class:`pykmm.Tape`."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm import flags as _flags
from pykmm.errors import TapeError

if TYPE_CHECKING:
    from pykmm.tape import Tape

__all__ = ["Address", "AddressLike", "OpStream"]

_MASK = (1 << 64) - 1
_ACCESS = {"read": 0, "r": 0, "write": 1, "w": 1, "exec": 2, "x": 2}


class Address:
    """The result of an operation (mmap, mremap, brk) plus a number of bytes; becomes a number when the tape runs."""

    __slots__ = ("tape", "op", "offset")

    def __init__(self, tape: Tape, op: int, offset: int = 0) -> None:
        self.tape = tape
        self.op = op
        self.offset = offset

    def __add__(self, other: int) -> Address:
        return Address(self.tape, self.op, self.offset + other) if isinstance(other, int) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: int) -> Address:
        return Address(self.tape, self.op, self.offset - other) if isinstance(other, int) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Address)
                and (self.tape is other.tape, self.op, self.offset) == (True, other.op, other.offset))

    def __hash__(self) -> int:
        return hash((self.op, self.offset))

    def __repr__(self) -> str:
        return f"<result of operation {self.op}{self.offset:+#x}>"


AddressLike = int | Address


class OpStream:
    """The operations of one thread (or of setup, or of final) in one address space.

    Lengths and offsets are bytes. Methods add an operation and return the address it will produce (mmap, mremap,
    brk), the child's stream (fork), or the operation's index in the tape. ``expect_errno`` (a number, or a name
    such as "EFAULT"; 0 = must succeed) turns the result into a check. Wrong values (a negative length) go to the
    system call as they are: what it answers is a result.
    """

    def __init__(self, tape: Tape, thread: int, mm: int, phase: int) -> None:
        self.tape = tape
        self.thread_index = thread
        self.mm = mm
        self.phase = phase

    def __repr__(self) -> str:
        return f"<stream of thread {self.thread_index}, address space {self.mm}>"

    def _address(self, value: AddressLike | None) -> tuple[int, int]:
        if value is None:
            return 0, -1
        if isinstance(value, Address):
            if value.tape is not self.tape:
                raise TapeError("an address of another tape")
            return value.offset & _MASK, value.op
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"an address is a number or the result of an operation, not {value!r}")
        return value.__index__() & _MASK, -1

    def _add(self, op: str, addr: AddressLike | None = None, length: int = 0, *,
             expect_errno: int | str | None = None, new: AddressLike | None = None, **fields: int) -> int:
        fields["addr"], fields["addr_ref"] = self._address(addr)
        if "new_addr_ref" not in fields:
            fields["new_addr"], fields["new_addr_ref"] = self._address(new)
        if expect_errno is not None:
            fields["expect_errno"] = _flags.errno_value(expect_errno)
        fields["len"] = length & _MASK
        return self.tape.append(op, thread=self.thread_index, mm=self.mm, phase=self.phase, **fields)

    # -- mappings --------------------------------------------------------------------------------

    def mmap(self, length: int, prot: int | str = "rw", *, addr: AddressLike = 0, flags: int | str = 0,
             shared: bool = False, file: str | None = None, offset: int = 0, fixed: bool | AddressLike = False,
             expect_errno: int | str | None = None) -> Address:
        """mmap(2): anonymous and private unless ``file=`` (a file of the tape) or ``shared=`` say otherwise.

        ``fixed`` is True together with ``addr``, or the address itself; ``flags`` adds further MAP_* bits.
        """
        bits = _flags.parse_map(flags)
        if not bits & 3:
            bits |= 1 if shared else 2
        number = -1
        if file is not None:
            number = self.tape.file(file).index
            self.tape.grow_file(number, offset + length)
        elif not bits & _flags.MAP["MAP_ANONYMOUS"]:
            bits |= _flags.MAP["MAP_ANONYMOUS"]
        if fixed is not False:
            bits |= _flags.MAP["MAP_FIXED"]
            if fixed is not True:
                addr = fixed
        return Address(self.tape, self._add(
            "MMAP", addr, length, prot=_flags.parse_prot(prot), flags=bits, file=number, offset=offset & _MASK,
            expect_errno=expect_errno))

    def munmap(self, addr: AddressLike, length: int, *, expect_errno: int | str | None = None) -> int:
        """munmap(2)."""
        return self._add("MUNMAP", addr, length, expect_errno=expect_errno)

    def mprotect(self, addr: AddressLike, length: int, prot: int | str, *,
                 expect_errno: int | str | None = None) -> int:
        """mprotect(2)."""
        return self._add("MPROTECT", addr, length, prot=_flags.parse_prot(prot), expect_errno=expect_errno)

    def mremap(self, addr: AddressLike, old_length: int, new_length: int, flags: int | str = 0,
               new_addr: AddressLike = 0, *, expect_errno: int | str | None = None) -> Address:
        """mremap(2)."""
        return Address(self.tape, self._add(
            "MREMAP", addr, old_length, new=new_addr, new_len=new_length & _MASK,
            flags=_flags.parse_flags(flags, _flags.MREMAP), expect_errno=expect_errno))

    def madvise(self, addr: AddressLike, length: int, advice: int | str, *,
                expect_errno: int | str | None = None) -> int:
        """madvise(2); advice as "DONTNEED" or a number."""
        return self._add("MADVISE", addr, length, flags=_flags.parse_madvise(advice), expect_errno=expect_errno)

    def brk(self, addr: AddressLike = 0, *, expect_errno: int | str | None = None) -> Address:
        """brk(2), the raw system call: the break it leaves; 0 asks."""
        return Address(self.tape, self._add("BRK", addr, expect_errno=expect_errno))

    def mlock(self, addr: AddressLike, length: int, flags: int | str = 0, *,
              expect_errno: int | str | None = None) -> int:
        """mlock(2), mlock2(2)."""
        return self._add("MLOCK", addr, length, flags=_flags.parse_flags(flags, _flags.MLOCK),
                         expect_errno=expect_errno)

    def munlock(self, addr: AddressLike, length: int, *, expect_errno: int | str | None = None) -> int:
        """munlock(2)."""
        return self._add("MUNLOCK", addr, length, expect_errno=expect_errno)

    def mlockall(self, flags: int | str, *, expect_errno: int | str | None = None) -> int:
        """mlockall(2)."""
        return self._add("MLOCKALL", flags=_flags.parse_flags(flags, _flags.MCL), expect_errno=expect_errno)

    def munlockall(self, *, expect_errno: int | str | None = None) -> int:
        """munlockall(2)."""
        return self._add("MUNLOCKALL", expect_errno=expect_errno)

    def msync(self, addr: AddressLike, length: int, flags: int | str, *, expect_errno: int | str | None = None) -> int:
        """msync(2)."""
        return self._add("MSYNC", addr, length, flags=_flags.parse_flags(flags, _flags.MS), expect_errno=expect_errno)

    def mincore(self, addr: AddressLike, length: int, *, expect_errno: int | str | None = None) -> int:
        """mincore(2)."""
        return self._add("MINCORE", addr, length, expect_errno=expect_errno)

    def mbind(self, addr: AddressLike, length: int, mode: int | str = 0, *,
              expect_errno: int | str | None = None) -> int:
        """mbind(2); mode as "BIND", "INTERLEAVE|F_STATIC_NODES" or a number. Its mask is node 0 where it needs one."""
        return self._add("MBIND", addr, length, flags=_flags.parse_mode(mode), expect_errno=expect_errno)

    def truncate(self, file: str, size: int, *, expect_errno: int | str | None = None) -> int:
        """ftruncate(2) of a file of the tape. `size` in bytes, at most the file's size when the tape starts."""
        return self._add("TRUNCATE", None, size, file=self.tape.file(file).index, expect_errno=expect_errno)

    # -- processes -------------------------------------------------------------------------------

    def fork(self, *, expect_errno: int | str | None = None) -> OpStream:
        """fork(2): the stream of the child, which has a copy of this address space and starts after the fork.

        The child of a thread or of setup runs at the same time as the threads; a child of final runs in final.
        """
        mm2 = self.tape.new_mm()
        op = self._add("FORK", mm2=mm2, expect_errno=expect_errno)
        if self.phase == 2:
            return OpStream(self.tape, self.thread_index, mm2, 2)
        return OpStream(self.tape, self.tape.add_thread(start_after=op), mm2, 1)

    def thread(self) -> OpStream:
        """Another thread of this address space, which starts when everything added here so far is done."""
        after = self._add("NOP")
        return OpStream(self.tape, self.tape.add_thread(start_after=after), self.mm, 1)

    def exit(self, *, expect_errno: int | str | None = None) -> int:
        """The address space goes away. What any thread does in it afterwards is an error of the tape."""
        return self._add("EXIT", expect_errno=expect_errno)

    # -- accesses --------------------------------------------------------------------------------

    def load(self, addr: AddressLike, length: int = 1, *, expect: bytes | None = None,
             expect_errno: int | str | None = None) -> int:
        """Reads bytes; ``expect`` is what must be there. A signal is reported as EFAULT (SIGSEGV, SIGBUS)."""
        blob = -1 if expect is None else self.tape.blob(expect)
        return self._add("LOAD", addr, len(expect) if expect is not None and length == 1 else length,
                         data=blob, access=0, expect_errno=expect_errno)

    def store(self, addr: AddressLike, data: bytes, *, expect_errno: int | str | None = None) -> int:
        """Writes bytes."""
        return self._add("STORE", addr, len(data), data=self.tape.blob(data), access=1, expect_errno=expect_errno)

    def touch(self, addr: AddressLike, length: int = 0, access: str = "write", *,
              expect_errno: int | str | None = None) -> int:
        """One access to every page of the range (0 = one byte): "read", "write" or "exec"."""
        if access not in _ACCESS:
            raise ValueError(f"access is read, write or exec, not {access!r}")
        return self._add("TOUCH", addr, length, access=_ACCESS[access], expect_errno=expect_errno)

    def pin(self, addr: AddressLike, length: int = 1, access: str = "read", *, write: bool = False,
            expect_errno: int | str | None = None) -> int:
        """pin_user_pages_fast: holds every page of the range, as for a device that reads it; ``write=True`` (or access
        "write"): for one that writes it. EFAULT, and nothing is pinned, where a page cannot be had so. What is
        still pinned at the end of the tape is given up then."""
        if write:
            access = "write"
        if access not in ("read", "write", "r", "w"):
            raise ValueError(f"access of a pin is read or write, not {access!r}")
        number = self._add("PIN", addr, length, access=_ACCESS[access], expect_errno=expect_errno)
        self.tape.pins.setdefault((self._address(addr), length), []).append((number, _ACCESS[access]))
        return number

    def unpin(self, addr: AddressLike, length: int = 1, *, expect: bytes | None = None, write: bytes | None = None,
              expect_errno: int | str | None = None) -> int:
        """Gives up the newest pin of the same range, of whichever thread, when it is made. Before, the device reads the
        pages (``expect`` is what must be there) or writes bytes to them (``write``; the pin must be one for writing).
        EFAULT where the pin had failed. TapeError: no such pin, or data that it is not for."""
        held = self.tape.pins.get((self._address(addr), length))
        if not held:
            raise TapeError(f"unpin: the tape has no pin of {length} bytes at {addr!r} that is still held")
        number, access = held[-1]
        data = expect if write is None else write
        if expect is not None and write is not None:
            raise TapeError("unpin: the device reads (expect) or writes (write), not both")
        if write is not None and access != _ACCESS["write"]:
            raise TapeError("unpin: the device cannot write through a pin for reading")
        if data is not None and len(data) > length:
            raise TapeError(f"unpin: {len(data)} bytes do not fit a pin of {length}")
        held.pop()
        return self._add("UNPIN", addr, length, data=-1 if data is None else self.tape.blob(data),
                         access=0 if write is None else 1, new_addr_ref=number, expect_errno=expect_errno)

    def compute(self, nanoseconds: int) -> int:
        """User work between memory operations, in nanoseconds."""
        if nanoseconds < 0:
            raise ValueError("compute time is not negative")
        return self._add("COMPUTE", None, nanoseconds)

    def nop(self) -> int:
        """Nothing, at a place in the order."""
        return self._add("NOP")
