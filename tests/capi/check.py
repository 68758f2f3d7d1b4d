# SPDX-License-Identifier: GPL-2.0-only
"""The installed strategy by its name: on a Machine, replaying a tape, and under the check engine."""
import mmap

import pykmm

with pykmm.Machine(strategy="reader_only", memory="16M") as machine:
    mm = machine.mm()
    address = mm.mmap(0, 0x4000, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mm.store(address + 0x1000, b"third party")
    assert mm.load(address + 0x1000, 11) == b"third party"
    mm.munmap(address, 0x4000)
    try:
        mm.load(address, 1)
    except pykmm.SegmentationFault:
        print("machine: ok")
    machine.validate()

tape = pykmm.Tape()
a = tape.setup.mmap(0x2000, prot="rw")
tape.setup.store(a, b"A")
tape.thread().store(a + 0x1000, b"B")
tape.thread().munmap(a + 0x1000, 0x1000)
with pykmm.Machine(strategy="reader_only", memory="16M") as machine:
    result = machine.run(tape)
    assert result.counters["attempts"] == result.faults
    print("native: ok")

report = pykmm.check(tape, strategy="reader_only")
assert report.ok and report.complete, str(report)
print("check: ok")
