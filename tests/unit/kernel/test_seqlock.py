# SPDX-License-Identifier: GPL-2.0-only
"""include/kmm/seqlock.h: no torn read is accepted."""
import pytest

from pykmm_ext.kernel.locktorture import LockTorture
from pykmm_ext.kernel.primitives import CpuSet, SeqLock


@pytest.mark.parametrize("writers", [1, 2])
def test_no_torn_read_is_accepted(run_threads, writers):
    t = LockTorture(CpuSet(3))
    jobs = [(t.seq_reader, 0, 1_000_000)] + [(t.seq_writer, 1 + i, 500_000) for i in range(writers)]
    torn, back, _ = run_threads(*jobs)[0]
    assert (torn, back) == (0, 0)


def test_sequence_tells_of_writers():
    lock = SeqLock(CpuSet(2))
    seq = lock.read_begin(0)
    assert not lock.read_retry(seq, 0)
    lock.write_lock(1)
    assert lock.sequence & 1
    assert lock.read_retry(seq, 0)
    lock.write_unlock(1)
    assert lock.read_retry(seq, 0)
    assert lock.sequence == seq + 2
    assert not lock.read_retry(lock.read_begin(0), 0)
    with pytest.raises(RuntimeError, match="no writer"):
        lock.write_unlock()
