# SPDX-License-Identifier: GPL-2.0-only
"""Instructions of one operation under each strategy: ``python benchmarks/count_instructions.py [STRATEGY...]``.

What the clock says on a shared machine varies by tens of per cent; the number of instructions does not vary at all. It
says nothing of what waits: an atomic read-modify-write is one instruction here and some twenty cycles there. An
instruction that repeats, as the one that clears a page, counts once a repetition.

Needs valgrind. Counted is what happens inside perform() of the tape executor: access, TLB, hardware walk, fault, system
call. Each figure is the difference of two runs, one of which does so many operations more.
"""
from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

#: What is counted: a name, the shorter and the longer run, and how many operations the longer one does more.
OPERATIONS = (
    ("read fault", "faults[access=read,size=4M]", "faults[access=read,size=8M]", 1024),
    ("write fault", "faults[access=write,size=4M]", "faults[access=write,size=8M]", 1024),
    ("mmap, munmap", "mmap1[iterations=100]", "mmap1[iterations=300]", 200),
    ("brk up, down", "brk1[iterations=100]", "brk1[iterations=300]", 200),
    ("mmap, write, munmap", "page_fault1[size=4K,iterations=100]", "page_fault1[size=4K,iterations=300]", 200),
    ("pin, unpin", "gup_test[size=64K,iterations=4]", "gup_test[size=64K,iterations=20]", 256),
)
CHILD = """
import sys, pykmm
from pykmm.workload import make
for text in sys.argv[2:]:
    with pykmm.Machine(strategy=sys.argv[1], cpus=1, memory="64M") as machine:
        machine.run(make(text, 1))
"""


def count(strategy: str) -> list[float]:
    """Instructions of each of OPERATIONS."""
    texts = [text for _, less, more, _ in OPERATIONS for text in (less, more)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["valgrind", "--tool=callgrind", "-q", f"--callgrind-out-file={folder}/out", "--collect-atstart=no",
             "--toggle-collect=*tape_ops_perform", "--dump-after=*native_stream_main", sys.executable, "-c", CHILD,
             strategy, *texts],
            check=True, env={**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"})
        found = []
        for i in range(len(texts)):
            text = pathlib.Path(f"{folder}/out.{i + 1}").read_text("utf-8")
            total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
            if total is None:
                sys.exit(f"valgrind left no total of {texts[i]} under {strategy}")
            found.append(int(total[1]))
    return [(found[2 * i + 1] - found[2 * i]) / more for i, (*_, more) in enumerate(OPERATIONS)]


def main(strategies: list[str]) -> None:
    """Print a table; the first strategy is what the others are compared with."""
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed")
    if not strategies:
        from pykmm.plugin import get_plugin_manager

        strategies = get_plugin_manager().strategies.names()
    names = [name for name, *_ in OPERATIONS]
    print("strategy", *names, sep=" | ")
    base: list[float] = []
    for strategy in strategies:
        figures = count(strategy)
        base = base or figures
        cells = [f"{figure:.0f} ({figure / first:.2f})" for figure, first in zip(figures, base, strict=True)]
        print(f"``{strategy}``", *cells, sep=" | ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
