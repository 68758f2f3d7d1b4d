# SPDX-License-Identifier: GPL-2.0-only
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pykmm.tape_program import TapeProgram
from pykmm_ext.engine.host_place import DEFAULT_BRK, SLOT_TOP, HostEngineError, place

__all__ = ["DEFAULT_BRK", "HostEngineError", "HostMap", "HostResult", "SLOT_TOP", "place", "run", "supported"]

class HostMap(NamedTuple):
    start: int
    end: int
    perms: str
    offset: int
    name: str
    resident: int

class HostResult:
    result: npt.NDArray[np.int64]
    errno: npt.NDArray[np.int32]
    signal: npt.NDArray[np.uint8]
    si_code: npt.NDArray[np.uint8]
    fault_addr: npt.NDArray[np.uint64]
    start_ns: npt.NDArray[np.int64] | None
    duration_ns: npt.NDArray[np.int64] | None
    elapsed_ns: int
    setup_ns: int
    wall_ns: int
    maps: dict[int, list[HostMap]]
    loads: dict[int, bytes]
    pagemap: dict[tuple[int, int], npt.NDArray[np.uint64]]
    minor_faults: npt.NDArray[np.int64]
    major_faults: npt.NDArray[np.int64]
    moved: npt.NDArray[np.bool_]
    brk: dict[int, tuple[int, int]]
    spans: list[tuple[int, int]]

def supported() -> bool: ...
def run(
    program: TapeProgram,
    *,
    timeout: float = 120.0,
    timing: bool = True,
    collect_maps: bool = True,
    compute: bool = True,
    pagemap: Iterable[tuple[int, int, int]] = (),
) -> HostResult: ...
