# SPDX-License-Identifier: GPL-2.0-only
"""mm/mmap.c, only the bookkeeping: which mappings a tape's address space has at a moment of the tape.

No pages and no faults, therefore no second memory manager: importers use it to find the mapping that a recorded
fault hit, and the ordering of recordings uses it to see which operations concern the same VMA. Addresses are bytes.
"""
from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from pykmm.flags import MADV, MAP, MREMAP

__all__ = ["Layout", "Piece"]

PAGE = 4096
#: MAP_* bits that stay visible in a VMA and so decide about merging.
KEPT = MAP["MAP_SHARED"] | MAP["MAP_GROWSDOWN"] | MAP["MAP_LOCKED"] | MAP["MAP_NORESERVE"] | MAP["MAP_HUGETLB"]
#: advice -> (bits cleared, bits set) of Piece.advice
_ADVICE = {
    MADV[name]: (clear, put)
    for name, clear, put in (
        ("MADV_NORMAL", 3, 0), ("MADV_RANDOM", 3, 1), ("MADV_SEQUENTIAL", 3, 2),
        ("MADV_DONTFORK", 0, 4), ("MADV_DOFORK", 4, 0), ("MADV_HUGEPAGE", 24, 8), ("MADV_NOHUGEPAGE", 24, 16),
        ("MADV_DONTDUMP", 0, 32), ("MADV_DODUMP", 32, 0), ("MADV_WIPEONFORK", 0, 64), ("MADV_KEEPONFORK", 64, 0),
        ("MADV_MERGEABLE", 0, 128), ("MADV_UNMERGEABLE", 128, 0),
    )
}


class Piece:
    """One mapping, or a part of one. ``anon``: who gave it its anon_vma, -1 = it has none."""

    __slots__ = ("start", "end", "prot", "flags", "file", "offset", "advice", "anon", "forked", "epoch", "maker", "tag")

    def __init__(self, start: int, end: int, prot: int, flags: int, file: int = -1, offset: int = 0,
                 epoch: int = 0, maker: int = -1) -> None:
        self.start = start
        self.end = end
        self.prot = prot
        self.flags = flags
        self.file = file
        self.offset = offset
        self.advice = 0
        self.anon = -1
        self.forked = False
        self.epoch = epoch
        self.maker = maker
        self.tag: object = None

    @property
    def shared(self) -> bool:
        """Whether stores reach the file or other processes."""
        return bool(self.flags & MAP["MAP_SHARED"])

    @property
    def backed(self) -> bool:
        """Whether offset means something: a file, or shared memory."""
        return self.file >= 0 or self.shared

    def part(self, start: int, end: int) -> Piece:
        """A copy that covers [start, end)."""
        new = Piece(start, end, self.prot, self.flags, self.file, self.offset, self.epoch, self.maker)
        new.offset = self.offset + (start - self.start) if self.backed else self.offset
        new.advice, new.anon, new.forked, new.tag = self.advice, self.anon, self.forked, self.tag
        return new

    def follows(self, before: Piece) -> bool:
        """Whether ``before`` and this one may become one VMA."""
        if (before.end != self.start or before.prot != self.prot or before.flags != self.flags
                or before.file != self.file or before.advice != self.advice):
            return False
        if self.backed and (self.file < 0 or before.offset + (before.end - before.start) != self.offset):
            return False
        if before.anon == self.anon:
            return True
        return (before.anon < 0 and not self.forked) or (self.anon < 0 and not before.forked)

    def __repr__(self) -> str:
        return f"Piece({self.start:#x}-{self.end:#x} prot={self.prot} file={self.file}@{self.offset:#x})"


class Layout:
    """The mappings of one address space. ``merging`` joins neighbours as Linux does."""

    def __init__(self, merging: bool = False) -> None:
        self.merging = merging
        #: (start, end) of pieces without an anon_vma that became part of one that has it; who looks empties it
        self.born: list[tuple[int, int]] = []
        self.starts: list[int] = []
        self.pieces: list[Piece] = []
        self.brk: int | None = None
        self.start_brk: int | None = None

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    def find(self, address: int) -> Piece | None:
        """The piece that covers ``address``."""
        i = bisect_right(self.starts, address) - 1
        if i >= 0:
            piece = self.pieces[i]
            if address < piece.end:
                return piece
        return None

    def above(self, address: int) -> Piece | None:
        """The first piece that ends above ``address``, as find_vma()."""
        i = bisect_right(self.starts, address) - 1
        if i >= 0 and address < self.pieces[i].end:
            return self.pieces[i]
        return self.pieces[i + 1] if i + 1 < len(self.pieces) else None

    def grows_to(self, address: int) -> Piece | None:
        """The stack above ``address`` that a touch of it would grow."""
        piece = self.above(address)
        if piece is not None and address < piece.start and piece.flags & MAP["MAP_GROWSDOWN"]:
            return piece
        return None

    def overlapping(self, start: int, end: int) -> list[Piece]:
        """Every piece that has a byte in [start, end)."""
        i = bisect_right(self.starts, start) - 1
        if i < 0 or self.pieces[i].end <= start:
            i += 1
        return self.pieces[i:bisect_left(self.starts, end)]

    def covered(self, start: int, end: int) -> bool:
        """Whether no byte of [start, end) is unmapped."""
        at = start
        for piece in self.overlapping(start, end):
            if piece.start > at:
                return False
            at = piece.end
        return at >= end

    def _cut(self, address: int) -> int:
        """Splits at ``address``; the index of the first piece that starts there or above."""
        i = bisect_left(self.starts, address)
        if i > 0:
            piece = self.pieces[i - 1]
            if piece.end > address:
                new = piece.part(address, piece.end)
                piece.end = address
                self.starts.insert(i, address)
                self.pieces.insert(i, new)
        return i

    def _merge(self, start: int, end: int) -> None:
        """Joins pieces from the one before ``start`` to the one after ``end``."""
        if not self.merging:
            return
        i = max(bisect_left(self.starts, start) - 1, 0)
        while i + 1 < len(self.pieces) and self.pieces[i].start < end:
            left, right = self.pieces[i], self.pieces[i + 1]
            if right.follows(left):
                if left.anon < 0 <= right.anon:
                    self.born.append((left.start, left.end))
                elif right.anon < 0 <= left.anon:
                    self.born.append((right.start, right.end))
                left.end = right.end
                if left.anon < 0:
                    left.anon, left.forked = right.anon, right.forked
                del self.pieces[i + 1], self.starts[i + 1]
            else:
                i += 1

    def isolate(self, start: int, end: int) -> list[Piece]:
        """The pieces in [start, end), split at both ends."""
        i = self._cut(start)
        return self.pieces[i:self._cut(end)]

    def unmap(self, start: int, end: int) -> list[Piece]:
        """munmap: what was there."""
        i = self._cut(start)
        j = self._cut(end)
        gone = self.pieces[i:j]
        del self.pieces[i:j], self.starts[i:j]
        return gone

    def put(self, piece: Piece) -> None:
        """Adds a piece, over whatever was there."""
        self.unmap(piece.start, piece.end)
        i = bisect_left(self.starts, piece.start)
        self.starts.insert(i, piece.start)
        self.pieces.insert(i, piece)
        self._merge(piece.start, piece.end)

    def map(self, start: int, end: int, prot: int, flags: int, file: int = -1, offset: int = 0, epoch: int = 0,
            maker: int = -1) -> Piece:
        """mmap at a known place. With merging, the piece returned may have become part of another."""
        piece = Piece(start, end, prot & 7, flags & KEPT, file, offset, epoch, maker)
        self.put(piece)
        return piece

    def protect(self, start: int, end: int, prot: int, epoch: int = 0) -> None:
        """mprotect."""
        for piece in self.isolate(start, end):
            piece.prot = prot & 7
            piece.epoch = epoch
        self._merge(start, end)

    def advise(self, start: int, end: int, advice: int, epoch: int = 0) -> None:
        """madvise: only what is visible in a VMA."""
        clear, put = _ADVICE.get(advice, (0, 0))
        for piece in self.isolate(start, end):
            piece.advice = piece.advice & ~clear | put
            piece.epoch = epoch
        self._merge(start, end)

    def lock(self, start: int, end: int, on: bool) -> None:
        """mlock, munlock."""
        bit = MAP["MAP_LOCKED"]
        for piece in self.isolate(start, end):
            piece.flags = piece.flags | bit if on else piece.flags & ~bit
        self._merge(start, end)

    def remap(self, old: int, old_len: int, new: int, new_len: int, flags: int = 0, epoch: int = 0,
              maker: int = -1) -> None:
        """mremap that returned ``new``."""
        source = self.find(old)
        if source is None:
            return
        moved = source.part(old, min(source.end, old + max(old_len, PAGE)))
        if old_len and not flags & MREMAP["MREMAP_DONTUNMAP"]:
            self.unmap(old, old + old_len)
        moved.offset = source.offset + (old - source.start) if source.backed else 0
        moved.start, moved.end, moved.epoch, moved.maker = new, new + new_len, epoch, maker
        self.put(moved)

    def set_brk(self, new: int, epoch: int = 0, maker: int = -1) -> None:
        """brk that returned ``new``."""
        if self.brk is None or self.start_brk is None:
            self.brk = self.start_brk = new
            return
        old_end, new_end = _up(self.brk), _up(new)
        if new_end > old_end:
            self.map(old_end, new_end, 3, 0, epoch=epoch, maker=maker)
        elif new_end < old_end:
            self.unmap(new_end, old_end)
        self.brk = new

    def copy(self, epoch: int = 0) -> Layout:
        """fork: what the child gets. Both sides' private pages are write-protected: both get ``epoch``."""
        child = Layout(self.merging)
        child.brk, child.start_brk = self.brk, self.start_brk
        for piece in self.pieces:
            piece.epoch = epoch
            if not piece.advice & 4:
                new = piece.part(piece.start, piece.end)
                new.forked = new.anon >= 0
                child.pieces.append(new)
                child.starts.append(new.start)
        return child


def _up(address: int) -> int:
    return (address + PAGE - 1) & ~(PAGE - 1)
