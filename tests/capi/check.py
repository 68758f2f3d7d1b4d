# SPDX-License-Identifier: GPL-2.0-only
"""Runs a Machine under the third party's strategy; prints what it counted."""
import mmap

import reader_only

import pykmm

pykmm.get_plugin_manager().add_plugin(reader_only, "reader_only")
with pykmm.Machine(strategy="reader_only", memory="16M") as machine:
    mm = machine.mm()
    address = mm.mmap(0, 0x4000, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mm.store(address + 0x1000, b"third party")
    assert mm.load(address + 0x1000, 11) == b"third party"
    mm.munmap(address, 0x4000)
    try:
        mm.load(address, 1)
    except pykmm.SegmentationFault:
        print("third party: ok")
    machine.validate()
