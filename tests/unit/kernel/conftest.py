# SPDX-License-Identifier: GPL-2.0-only
"""Threads for the torture tests, one per simulated CPU; locks for the tests of lockdep."""
import threading
from collections.abc import Callable
from typing import Any

import pytest
from lockdep_locks import Graph

Job = tuple[Any, ...]


@pytest.fixture
def run_threads() -> Callable[..., list[Any]]:
    """run_threads((function, *args), …): all at once; their results in order. Re-raises what one raised."""

    def run(*jobs: Job) -> list[Any]:
        results: list[Any] = [None] * len(jobs)
        errors: list[BaseException] = []
        start = threading.Barrier(len(jobs))

        def body(i: int, job: Job) -> None:
            try:
                start.wait()
                results[i] = job[0](*job[1:])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=body, args=(i, job)) for i, job in enumerate(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    return run


@pytest.fixture(params=[False, True], ids=["membarrier", "full-fences"])
def full_fences(request: pytest.FixtureRequest) -> bool:
    """Both kinds of asymmetric barrier."""
    return bool(request.param)


@pytest.fixture
def g() -> Graph:
    """A lockdep of its own."""
    return Graph()
