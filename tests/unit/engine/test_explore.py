# SPDX-License-Identifier: GPL-2.0-only
"""engine/explore.pyx and the thread carrier: compiled programs that call Python, as Python strategies do."""
import threading

import pytest

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.explore import PythonProgram
from pykmm_ext.engine.explore_test import PythonInTheMiddle


def test_python_between_two_layers_of_c():
    before = threading.active_count()
    program = PythonInTheMiddle(lambda program, id: program.inner(id, 1))
    search = Exploration(program)
    search.run()
    assert search.complete
    assert not search.violations
    assert set(search.outcomes) == {1, 2}
    assert not program.log
    assert threading.active_count() == before


def test_unwinds_through_c_and_python():
    """Each vCPU holds its lock in C and wants the other's in Python."""
    program = PythonInTheMiddle(lambda program, id: program.inner(id, 2 - 2 * id))
    search = Exploration(program)
    search.run(stop_at_violation=False)
    assert [found[0] for found in search.violations] == ["deadlock"]
    assert search.complete
    assert set(program.log) == {"abandoned", "unwound"}
    assert program.log.count("abandoned") == program.log.count("unwound")


def test_split_gives_the_same():
    def program():
        return PythonInTheMiddle(lambda program, id: program.inner(id, 1))

    whole = Exploration(program())
    whole.run()
    first = Exploration(program())
    parts = first.split(3)
    outcomes = dict(first.outcomes)
    for prefix in parts:
        part = Exploration(program(), prefix=prefix)
        part.run()
        for value, count in part.outcomes.items():
            outcomes[value] = outcomes.get(value, 0) + count
    assert set(outcomes) == set(whole.outcomes)


@pytest.mark.parametrize("n", [0, 17])
def test_number_of_vcpus(n):
    with pytest.raises(ValueError, match="1 to 16"):
        PythonProgram(lambda program: None, n)
