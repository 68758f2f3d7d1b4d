# SPDX-License-Identifier: GPL-2.0-only
"""The operations of a tape, and the arrays of a program."""
from typing import Self

import numpy as np
import numpy.typing as npt

class TapeArrays:
    def __new__(cls, ops: npt.NDArray[np.uint8], stream_start: npt.NDArray[np.uint32],
                 dep_start: npt.NDArray[np.uint32], dep_stream: npt.NDArray[np.uint32], dep_pos: npt.NDArray[np.uint32],
                 awaited: npt.NDArray[np.uint8], closes: npt.NDArray[np.uint8], results: npt.NDArray[np.int64],
                 codes: npt.NDArray[np.uint8], durations: npt.NDArray[np.uint64] | None, roots: list[int], mms: int,
                 files: list[tuple[str, bytes | None, int, tuple[int, int], int]], blobs: list[bytes],
                 blob_lens: list[int], recorded: bool) -> Self: ...
