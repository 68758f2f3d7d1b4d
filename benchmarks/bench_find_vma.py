# SPDX-License-Identifier: GPL-2.0-only
"""Cost of find_vma() with random keys at 100 to 100k VMAs, beside a plain C tree of the same shape and the same keys.

The baseline is compiled when the benchmark starts: a balanced binary tree whose nodes are laid out as an rbtree of VMAs
(range, parent, right, left, as far apart as VMAs lie) and the textbook lookup. Run with
``pytest benchmarks/bench_find_vma.py``; extra_info holds ns per lookup, the baseline's, and the ratio.
"""
from __future__ import annotations

import ctypes
import os
import pathlib
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import pykmm
from pykmm_ext.mm import vma_test

BASE, STRIDE, LOOKUPS = 0x100_0000_0000, 0x2000, 200_000
SOURCE = r"""
#include <stdlib.h>
#include <time.h>
struct node { unsigned long start, end, pad[2], parent; struct node *right, *left; char rest[184]; };
static struct node *build(struct node *pool, unsigned long lo, unsigned long hi, unsigned long base,
                          unsigned long stride)
{
    unsigned long mid = lo + (hi - lo) / 2;
    struct node *n;
    if (lo >= hi)
        return NULL;
    n = pool + mid;
    n->start = base + mid * stride;
    n->end = n->start + stride / 2;
    n->left = build(pool, lo, mid, base, stride);
    n->right = build(pool, mid + 1, hi, base, stride);
    return n;
}
static __attribute__((noinline)) struct node *lookup(struct node *n, unsigned long key)
{
    struct node *found = NULL;
    while (n) {
        if (n->end > key) {
            found = n;
            if (n->start <= key)
                break;
            n = n->left;
        } else {
            n = n->right;
        }
    }
    return found;
}
double run(unsigned long n, unsigned long base, unsigned long stride, const unsigned long *keys, unsigned long count)
{
    struct node *pool = calloc(n, sizeof *pool), *root;
    struct timespec a, b;
    unsigned long i, wrong = 0;
    if (!pool)
        return -1;
    root = build(pool, 0, n, base, stride);
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (i = 0; i < count; i++)
        wrong += lookup(root, keys[i])->start != keys[i];
    clock_gettime(CLOCK_MONOTONIC, &b);
    free(pool);
    return wrong ? -1 : ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count;
}
"""


@pytest.fixture(scope="module")
def plain_tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, bytes], float]:
    """ns per lookup of the plain tree."""
    where: pathlib.Path = tmp_path_factory.mktemp("plain_tree")
    (where / "tree.c").write_text(SOURCE)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-O2", "-shared", "-fPIC", "-o", "tree.so", "tree.c"], cwd=where, check=True)
    run = ctypes.CDLL(str(where / "tree.so")).run
    run.restype = ctypes.c_double
    run.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong]
    return lambda n, keys: run(n, BASE, STRIDE, keys, len(keys) // 8)


@pytest.mark.parametrize("how", ["find_vma", "srcu"])
@pytest.mark.parametrize("n", [100, 1_000, 10_000, 100_000])
def test_find_vma(benchmark: Any, plain_tree: Callable[[int, bytes], float], n: int, how: str) -> None:
    with pykmm.Machine(arch="x86", strategy="spf", cpus=1, memory="64M") as machine:
        mm = machine.mm()
        vma_test.set_max_map_count(mm, 1 << 20)
        for i in range(n):
            mm.mmap(BASE + i * STRIDE, STRIDE // 2, 3, 0x32)
        keys = vma_test.random_keys(BASE, n, STRIDE, LOOKUPS)
        best = [float("inf"), float("inf")]

        def once() -> None:
            # side by side, so that a disturbance hits both
            best[0] = min(best[0], vma_test.time_find_vma(mm, keys, how))
            best[1] = min(best[1], plain_tree(n, keys))

        benchmark.pedantic(once, rounds=7, warmup_rounds=1)
        mm.exit()
    assert 0 < best[1] < float("inf")
    benchmark.extra_info["ns_per_lookup"] = round(best[0], 1)
    benchmark.extra_info["plain_tree_ns"] = round(best[1], 1)
    benchmark.extra_info["ratio_to_plain_tree"] = round(best[0] / best[1], 2)
