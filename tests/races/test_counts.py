# SPDX-License-Identifier: GPL-2.0-only
"""Classical programs of the model-checking literature: verdicts, and how many executions they have.

Where a number is not combinatorics (n!, 2**n), it is what Nidhugg, GenMC and a naive search agree on.
"""
from __future__ import annotations

from collections.abc import Callable
from math import factorial, prod

import check_programs as p
import pytest
from check_programs import Code

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.litmus import Litmus

MODELS = ("sc", "tso", "pso", "power")


def explore(threads: list[Code], model: str = "sc", *, explorer: str = "dpor", graphs: bool = True,
            words: int = 64, initial: tuple[int, ...] = (), open_spinlocks: bool = False) -> Exploration:
    """To the end."""
    program = Litmus(threads, words=words, initial=initial, open_spinlocks=open_spinlocks)
    search = Exploration(program, memory_model=model, explorer=explorer, graphs=graphs)
    search.run(stop_at_violation=False)
    assert search.complete
    assert search.fallbacks == 0
    if explorer == "dpor" and model != "power":
        assert search.redundant == 0
    return search


def interleavings(*lengths: int) -> int:
    """Ways to merge sequences of these lengths."""
    return factorial(sum(lengths)) // prod(map(factorial, lengths))


@pytest.mark.parametrize(("n", "count"), [(2, 4), (8, 256), (13, 8192)])
def test_readers(n: int, count: int) -> None:
    assert explore(p.readers(n)).executions == count == 2 ** n


@pytest.mark.parametrize(("n", "count"), [(5, 64), (10, 3328)])
def test_lastzero(n: int, count: int) -> None:
    assert explore(p.lastzero(n)).executions == count


@pytest.mark.parametrize(("n", "count"), [(11, 1), (12, 8), (13, 64)])
def test_indexer(n: int, count: int) -> None:
    assert explore(p.indexer(n), words=128).executions == count


@pytest.mark.parametrize(("n", "sc", "tso"), [(1, 3, 3), (2, 19, 20), (3, 141, 175)])
def test_fib2(n: int, sc: int, tso: int) -> None:
    assert explore(p.fib2(n), initial=(1, 1)).executions == sc
    assert explore(p.fib2(n), "tso", initial=(1, 1)).executions == tso


def test_fib_bench() -> None:
    assert explore(p.fib_bench(4), initial=(1, 1)).executions == 19605
    assert explore(p.fib_bench(4), "tso", initial=(1, 1)).executions == 34205


def test_fib_bench_of_five() -> None:
    assert explore(p.fib_bench(5), initial=(1, 1), graphs=False).executions == 218243


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n", [2, 5, 7])
def test_increments(n: int, model: str) -> None:
    assert explore(p.increments(n), model).executions == factorial(n)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_blocking_lock_has_no_blocked_runs(n: int, model: str) -> None:
    search = explore(p.lockers(n), model)
    assert search.executions == factorial(n)
    assert search.blocked == 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_test_and_set_lock(n: int) -> None:
    # A spin_lock() that fails waits, then tries again: which failures there are counts as well.
    search = explore(p.lockers(n), open_spinlocks=True)
    naive = explore(p.lockers(n), open_spinlocks=True, explorer="dfs") if n < 4 else search
    assert search.executions == naive.executions >= factorial(n)
    assert len(search.outcomes) == len(naive.outcomes)
    assert search.failed == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_ticket_lock(n: int, model: str) -> None:
    search = explore(p.ticket(n), model)
    if model in ("sc", "tso"):      # its unlock is a plain store: weaker machines break it, and are another test
        assert search.executions == factorial(n)
        assert len(search.outcomes) == factorial(n)


def test_abba() -> None:
    search = explore(p.abba())
    assert (search.executions, search.failed) == (2, 1)
    assert [v[0] for v in search.violations] == ["deadlock"]


@pytest.mark.parametrize(("n", "count"), [(2, 3), (3, 40), (4, 1533), (5, 153996)])
def test_pfzap(n: int, count: int) -> None:
    assert explore(p.pfzap(n), graphs=n < 5).executions == count


@pytest.mark.parametrize("n", [2, 3, 5])
def test_orders_of_independent_objects(n: int) -> None:
    assert explore(p.sigma(n)).executions == factorial(n)
    assert explore(p.writers(n)).executions == factorial(n)
    assert explore(p.floating_read(n)).executions == 2


@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 2), (3, 2)])
def test_writers_and_readers(n: int, m: int) -> None:
    # Every order of the writers; every reader in one of the n + 1 gaps.
    assert explore(p.writers_readers(n, m)).executions == factorial(n) * (n + 1) ** m


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 2), (4, 4)])
def test_all_interleavings_of_one_word(n: int, m: int) -> None:
    threads: list[Code] = [[p.RMW(0, 0, "add", 1) for _ in range(n)], [p.RMW(0, 0, "add", 1) for _ in range(m)]]
    assert explore(threads).executions == interleavings(n, m)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("algorithm", [p.dekker, p.peterson, p.lamport_fast, p.szymanski, p.burns])
def test_mutual_exclusion_needs_full_barriers(algorithm: Callable[[str], list[Code]], model: str) -> None:
    bare, weak, full = explore(algorithm(""), model), explore(algorithm("wmb"), model), explore(algorithm("mb"), model)
    broken = model != "sc"
    assert ("assertion" in {v[0] for v in bare.violations}) == broken
    assert ("assertion" in {v[0] for v in weak.violations}) == broken
    # Peterson's flag and turn have to become visible in this order as well.
    assert bool(full.violations) == (algorithm is p.peterson and model in ("pso", "power"))


@pytest.mark.parametrize("model", MODELS)
def test_peterson_with_both_barriers(model: str) -> None:
    assert not explore(p.peterson("mb", "mb"), model).violations
    # The flag of one CPU, the turn of both, the flag again: R with smp_wmb() and smp_mb(), which power allows.
    assert bool(explore(p.peterson("mb", "wmb"), model).violations) == (model == "power")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("n", "count"), [(2, 6), (3, 66), (4, 1080)])
def test_mcs_lock(n: int, count: int, model: str) -> None:
    search = explore(p.mcs(n), model)
    assert not search.violations
    assert search.executions == count


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("wmb", "rmb"), [("wmb", "rmb"), ("", "rmb"), ("wmb", ""), ("", "")])
def test_seqcount(wmb: str, rmb: str, model: str) -> None:
    torn = {v[0] for v in explore(p.seqlock(wmb=wmb, rmb=rmb), model).violations}
    needed = (model in ("pso", "power") and not wmb) or (model == "power" and not rmb)
    assert torn == ({"assertion"} if needed else set())


@pytest.mark.parametrize("model", ["sc", "tso", "pso"])
def test_treiber_stack(model: str) -> None:
    threads = p.treiber(2, 1)
    search = explore(threads, model)
    assert not search.violations
    assert search.executions == explore(p.treiber(2, 1)).executions


def test_exponential_bug() -> None:
    assert {v[0] for v in explore(p.exponential_bug(3)).violations} == {"assertion"}


@pytest.mark.parametrize("n", [3, 5, 6])
def test_filesystem(n: int) -> None:
    search = explore(p.filesystem(n))
    assert not search.violations
    assert search.executions <= 2 ** n


def test_all_explorers_of_one_program_agree() -> None:
    assert explore(p.pfzap(3)).executions == explore(p.pfzap(3), explorer="dfs").executions == 40
