# SPDX-License-Identifier: GPL-2.0-only
"""The native engine: a tape on real threads, one per simulated CPU."""
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pykmm_ext.binding import Machine

def run(machine: Machine, ops: npt.NDArray[np.uint8], stream_start: npt.NDArray[np.uint32],
        dep_start: npt.NDArray[np.uint32], dep_stream: npt.NDArray[np.uint32], dep_pos: npt.NDArray[np.uint32],
        awaited: npt.NDArray[np.uint8], closes: npt.NDArray[np.uint8], results: npt.NDArray[np.int64],
        codes: npt.NDArray[np.uint8], durations: npt.NDArray[np.uint64] | None, roots: list[int], mms: int,
        files: list[tuple[str, bytes | None, int, tuple[int, int], int]], blobs: list[bytes], blob_lens: list[int],
        recorded: bool, commit: int, *, watchdog: float = 0.0, describe: Callable[[int], str] = ...,
        ) -> tuple[int, list[int], dict[int, list[Any]], list[tuple[int, int]]]: ...
