# SPDX-License-Identifier: GPL-2.0-only
"""kernel/rbtree.pyx: against a sorted list, and lockless descents beside a writer."""
import math
import random

import pytest

from pykmm_ext.kernel.primitives import CpuSet
from pykmm_ext.kernel.rbtree_test import RbTree


@pytest.fixture(params=[False, True], ids=["plain", "augmented"])
def augmented(request):
    return request.param


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 20, 300])
def test_random_operations(augmented, capacity):
    rng = random.Random(capacity)
    tree = RbTree(CpuSet(1), capacity, augmented)
    model: set[int] = set()
    for _ in range(3000):
        key = rng.randrange(capacity)
        if rng.random() < (0.7 if len(model) < capacity // 2 else 0.4):
            assert tree.insert(key) == (key not in model)
            model.add(key)
        else:
            assert tree.erase(key) == (key in model)
            model.discard(key)
        height = tree.validate()
        assert height <= math.log2(len(model) + 1) + 1e-9
        assert tree.empty == (not model)
        assert tree.linked(key) == (key in model)
    assert tree.keys() == sorted(model)
    assert tree.keys_reversed() == sorted(model, reverse=True)


@pytest.mark.parametrize("order", ["up", "down", "zigzag"])
def test_ordered_operations(augmented, order):
    n = 1000
    keys = {"up": list(range(n)), "down": list(range(n - 1, -1, -1)),
            "zigzag": [k for pair in zip(range(n // 2), range(n - 1, 0, -1), strict=False) for k in pair]}[order]
    tree = RbTree(CpuSet(1), n, augmented)
    for i, key in enumerate(keys):
        assert tree.insert(key)
        if i % 37 == 0:
            tree.validate()
    tree.validate()
    assert tree.keys() == list(range(n))
    for i, key in enumerate(keys):
        assert tree.erase(key)
        if i % 37 == 0:
            tree.validate()
    assert tree.empty


def test_replace(augmented):
    tree = RbTree(CpuSet(1), 100, augmented)
    for key in range(0, 100, 2):
        tree.insert(key)
    for key in range(0, 100, 2):
        tree.replace(key, key + 1)
        tree.validate()
        assert not tree.linked(key)
    assert tree.keys() == list(range(1, 100, 2))


@pytest.mark.parametrize("what", ["color", "parent", "loop"])
def test_validate_notices(what):
    tree = RbTree(CpuSet(1), 64)
    for key in range(64):
        tree.insert(key)
    tree.corrupt(0, what)
    with pytest.raises(AssertionError, match="red-black rules broken"):
        tree.validate()


@pytest.mark.parametrize("capacity", [4, 16, 1000])
def test_lockless_descents_end(run_threads, augmented, capacity):
    tree = RbTree(CpuSet(3), capacity, augmented)
    left, *readers = run_threads(
        (tree.churn, 0, 1_000_000, 7),
        (tree.descend, 1, 1 << 40, 11, 500),
        (tree.descend, 2, 1 << 40, 13, 500))
    assert [loops for _, loops, _ in readers] == [0, 0]
    tree.validate()
    assert len(tree.keys()) == left
