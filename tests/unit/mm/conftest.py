# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the tests of pykmm_ext.mm."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from arch_under_test import ARCH, frames

import pykmm

ON = ["mmap_sem", "spf", "spf-rfc5", "spf-rfc5[fixes=all]", "spf on x86-paravirt", "spf-2021",
      "spf-2021 on x86-paravirt", "per_vma_lock", "per_vma_lock-refcount"]


@pytest.fixture(params=ON if ARCH == "x86" else ["mmap_sem", "spf"])
def mm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty address space; everything is validated and accounted for afterwards."""
    strategy, _, arch = request.param.partition(" on ")
    with pykmm.Machine(arch=arch or ARCH, strategy=strategy, cpus=1, memory=frames("32M")) as machine:
        space = machine.mm()
        yield space
        machine.validate()
        space.exit()
        machine.validate()
