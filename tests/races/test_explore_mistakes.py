# SPDX-License-Identifier: GPL-2.0-only
"""pykmm.explore: programs that go wrong, and everything that user code may do to the engine."""
from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import signal
import threading
import time

import pytest
from explore_programs import philosophers, spinning, store_buffering
from explored import violation

from pykmm.checking.explore import explore


def test_exception_in_a_vcpu():
    def program(x):
        a = x.atomic()
        x.vcpu(lambda cpu: a.store(1, cpu))
        x.vcpu(lambda cpu: 1 // a.cmpxchg(1, 1, cpu))

    found = violation(program, "assertion")
    assert found.message.startswith("Cpu 1: ZeroDivisionError")
    assert "test_explore_mistakes.py" in found.message and ".pyx" not in found.message


def test_exception_in_the_program_is_passed_on():
    def program(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        explore(program)


def test_exception_in_an_rcu_callback():
    def program(x):
        def cpu(cpu):
            x.rcu().call(lambda: 1 // 0, cpu)
            x.rcu().barrier(cpu)

        x.vcpu(cpu)

    assert "ZeroDivisionError" in violation(program, "assertion").message


def test_abandoned_inside_an_rcu_callback():
    """The execution ends while a vCPU waits inside of Python code that C called."""
    unwound = []

    def program(x):
        stop, go = x.atomic(name="stop"), x.atomic()

        def callback():
            try:
                stop.cond_load_acquire(1)
            finally:
                unwound.append(1)

        def cpu(cpu):
            x.rcu().call(callback, cpu)
            go.store(1, cpu)
            x.rcu().barrier(cpu)
            raise AssertionError("not reached")

        x.vcpu(cpu)
        x.vcpu(go.load)

    report = explore(program)
    assert [found.kind for found in report.violations] == ["deadlock"]
    assert unwound


def test_finally_blocks_run_and_their_primitives_do_nothing():
    log = []

    def program(x):
        a, b = x.spin_lock(), x.atomic()

        def cpu(cpu):
            a.lock(cpu)
            try:
                b.cond_load_acquire(1, cpu)
            except Exception:
                log.append("wrong")
            finally:
                log.append("finally")
                a.unlock(cpu)
                log.append("wrong")

        x.vcpu(cpu)

    assert explore(program).violations[0].kind == "deadlock"
    assert log and set(log) == {"finally"}


def test_a_function_may_swallow_the_end_of_its_execution():
    def program(x):
        a = x.atomic()

        def cpu(cpu):
            for _ in range(5):
                with contextlib.suppress(BaseException):
                    a.cond_load_acquire(1, cpu)

        x.vcpu(cpu)

    assert explore(program).violations[0].kind == "deadlock"


def test_a_function_that_never_ends_is_given_up():
    def program(x):
        a = x.atomic()

        def cpu(cpu):
            while True:
                with contextlib.suppress(BaseException):
                    a.cond_load_acquire(1, cpu)

        x.vcpu(cpu)

    with pytest.raises(RuntimeError, match="catches BaseException in a loop"):
        explore(program)


def test_spinning_is_a_livelock():
    assert explore(spinning, max_steps=200).violations[0].kind == "livelock"


def test_condition_of_a_wait_may_raise():
    def program(x):
        a = x.atomic()
        x.vcpu(lambda cpu: a.cond_load_acquire(lambda value: 1 // value, cpu))

    assert "ZeroDivisionError" in violation(program, "assertion").message


@pytest.mark.parametrize("what", ["operation", "order", "vcpus"])
def test_nondeterminism_is_noticed(what):
    calls = itertools.count()

    def program(x):
        n = next(calls)
        words = [x.atomic(), x.atomic()]

        def cpu(cpu):
            for word in words if what != "order" or n % 2 else words[::-1]:
                word.store(1, cpu)
                if what == "operation" and n % 2:
                    word.load(cpu)

        x.vcpu(cpu)
        x.vcpu(cpu)
        if what == "vcpus" and n == 3:
            x.vcpu(cpu)

    with pytest.raises(RuntimeError, match="the same"):
        explore(program)


def test_objects_of_an_older_execution():
    old = []

    def program(x):
        old.append(x.atomic())
        x.vcpu(old[0].load)

    assert "belongs to an execution that is over" in explore(program).violations[0].message


def test_the_wrong_cpu_and_the_wrong_thread():
    def program(x):
        a = x.atomic()
        x.vcpu(lambda cpu: a.load(1))
        x.vcpu(lambda cpu: None)

    assert "this is the function of CPU 0, not of CPU 1" in explore(program).violations[0].message

    def threaded(x):
        a = x.atomic()
        errors = []

        def work():
            try:
                a.load(0)
            except RuntimeError as error:
                errors.append(str(error))

        def cpu(cpu):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            raise RuntimeError(errors[0])

        x.vcpu(cpu)

    assert "none of its vCPUs" in explore(threaded).violations[0].message


@pytest.mark.parametrize("how", ["loop", "lock"])
def test_watchdog(how):
    release = threading.Lock()
    release.acquire()

    def program(x):
        a = x.atomic()

        def cpu(cpu):
            a.load(cpu)
            while how == "loop":
                pass
            release.acquire()
            a.load(cpu)

        x.vcpu(cpu)

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="has not come to a primitive for 0.3 s(.|\n)*test_explore_mistakes.py"):
        explore(program, watchdog=0.3)
    release.release()       # the thread that was left alone comes back to an execution that is over
    for _ in range(1000):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before


def test_keyboard_interrupt():
    def program(x):
        a = x.atomic()

        def cpu(cpu):
            a.load(cpu)
            while True:
                pass

        x.vcpu(cpu)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            explore(program)
    finally:
        signal.signal(signal.SIGINT, before)
    timer.join()


def resident_pages():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1])


def test_nothing_is_left_behind():
    before = threading.active_count()
    for _ in range(100):
        explore(store_buffering(False), memory_model="tso")
    first = resident_pages()
    for _ in range(100):
        explore(philosophers(3, False), stop_at_violation=False)
    assert threading.active_count() == before
    assert resident_pages() - first < 500


def test_bad_arguments():
    with pytest.raises(ValueError, match="1 to 16 vCPUs"):
        explore(lambda x: None)
    with pytest.raises(ValueError, match="unknown memory model"):
        explore(store_buffering(False), memory_model="x86")
    with pytest.raises(ValueError, match="unknown explorer"):
        explore(store_buffering(False), explorer="bfs")
    with pytest.raises(ValueError, match="preemptions"):
        explore(store_buffering(False), explorer="pct", preemptions=1)
