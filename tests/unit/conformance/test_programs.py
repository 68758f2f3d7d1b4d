# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/conformance/programs.py: generated programs, the same for every page size."""
from __future__ import annotations

import pytest

from pykmm.conformance.programs import KINDS, Layout, Program, Step, generate, write
from pykmm.tape import OPCODE_NAMES

SMALL, LARGE = Layout(4096, 2 << 20), Layout(65536, 2 << 20)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_program(kind: str) -> None:
    assert generate(kind, 7) == generate(kind, 7)
    assert generate(kind, 7) != generate(kind, 8)
    assert generate(kind, 7).streams == (1 if kind == "single" else 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_page_sizes_differ_in_bytes_only(kind: str, seed: int) -> None:
    program = generate(kind, seed)
    small, large = write(program, SMALL), write(program, LARGE)
    small.tape.validate()
    large.tape.validate()
    assert small.tape.ops["op"].tolist() == large.tape.ops["op"].tolist()
    assert small.ops == large.ops
    for step, op in zip(program.steps, small.ops):
        if op >= 0 and not (step.half or step.shift) and step.op not in ("fork", "truncate", "brk", "heap"):
            places = [layout.place(int(written.tape.ops["addr"][op]), 0, 3)
                      for layout, written in ((SMALL, small), (LARGE, large))]
            assert places[0] == places[1] is not None
    assert LARGE.pages(65535) == (1, -1)
    assert SMALL.pages(-1) == (0, -1)
    assert SMALL.pages(3 * 4096 + 5) == (3, 5)


def test_windows_lie_across_two_page_tables() -> None:
    for layout in (SMALL, LARGE):
        for stream in range(3):
            start = layout.window(stream)
            assert start // layout.span != (start + 11 * layout.page) // layout.span
            assert start % layout.page == 0


def test_every_call_is_generated() -> None:
    seen = set()
    for kind in KINDS:
        for seed in range(60):
            seen |= {OPCODE_NAMES[op] for op in write(generate(kind, seed), SMALL).tape.ops["op"].tolist()}
    assert {"MMAP", "MUNMAP", "MPROTECT", "MREMAP", "MADVISE", "BRK", "MLOCK", "MUNLOCK", "MSYNC", "MINCORE", "FORK",
            "TOUCH", "LOAD", "STORE", "TRUNCATE"} <= seen


def test_what_a_child_shares_is_not_raced_for() -> None:
    """Without an order between the threads, nothing that a fork shares may be changed by either."""
    for seed in range(50):
        steps = generate("disjoint", seed).steps
        if any(step.op == "fork" for step in steps):
            assert not any(step.op in ("file", "truncate") or (step.op == "mmap" and step.flags & 1) for step in steps)


def test_ordered_programs_are_one_chain() -> None:
    written = write(generate("ordered", 3), SMALL)
    edges = written.tape.edges
    assert all(first[1] == second[0] for first, second in zip(edges, edges[1:]))
    assert {op for op in written.ops if op >= 0} <= {op for edge in edges for op in edge}


def test_without_a_fork_its_child_goes() -> None:
    fork = Step("fork", 0, child=1)
    program = Program("single", 0, 1, (fork, Step("load", 0, space=1, at=2), Step("load", 0, at=3)))
    assert [step.space for step in program.without(0).steps] == [0]
    assert len(program.without(2).steps) == 2
    assert "in child 1: load page 2" in str(program)
    assert write(Program("single", 0, 1, program.steps[1:]), SMALL).ops[0] == -1


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown kind of program 'x'; known: single, ordered, disjoint"):
        generate("x", 0)
