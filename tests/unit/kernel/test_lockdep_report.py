# SPDX-License-Identifier: GPL-2.0-only
"""kernel/lockdep_report.pyx, kernel/lockdep_graph.pyx: the reports' text, and graphs of several processes."""
import json

import pytest
from lockdep_locks import SLEEPABLE, Graph, kinds, pairs

from pykmm_ext.kernel.lockdep_report import format_report
from pykmm_ext.kernel.lockdep_test import one_line


def test_text_and_json(g):
    g.cls("vm_sequence", "seqcount", SLEEPABLE)
    g.take("vm_sequence", where="__vma_adjust")
    g.take("i_mmap", where="vma_link")
    g.ld.reset_held()
    g.take("i_mmap", 1, where="unmap_mapping_range")
    report = json.loads(json.dumps(g.take("vm_sequence", 1, where="zap")))
    assert format_report(report) == """\
lock-order: the order of these locks is a cycle: possible deadlock
  CPU 1, execution 1, at zap: vm_sequence
  the cycle, first the edge that closed it:
    1. i_mmap      -> vm_sequence
       held since unmap_mapping_range, asked for at zap; CPU 1, execution 1
    2. vm_sequence -> i_mmap
       held since __vma_adjust, asked for at vma_link; CPU 0, execution 0
  CPU 1 holds, oldest first:
    i_mmap (write) since unmap_mapping_range"""


def test_text_of_an_inversion(g):
    g.chain("A", in_irq=True, irqs_off=True)
    (report,) = g.chain("A", cpu=1)
    text = format_report(report)
    assert "A =irq=> A" in text
    assert "handler at take A" in text
    assert "holds no lock" in text


def test_text_of_readers(g):
    g.chain("A", "B", mode="read")
    (report,) = g.chain("B", "A", mode="read", cpu=1)
    assert format_report(report).count("(held for reading)") == 2


def test_one_line(g):
    g.chain("A", "B")
    g.take("B", 1, subclass=0)
    report = g.take("A", 1)
    kind, text = one_line(g.ld)
    assert kind == report["violation"]
    assert text == f"Cpu 1: {report['message']}: B -> A (Cpu 1, take A); A -> B (Cpu 0, take B)"
    report = g.ld.might_sleep(1)
    assert one_line(g.ld) == (report["violation"], f"Cpu 1: {report['message']}: something; holds B, A")
    assert one_line(g.ld, 10)[1] == "Cpu 1: ma"
    assert one_line(g.ld, 1)[1] == ""


@pytest.mark.parametrize("what", ["self", "irq", "ipi", "sleep", "unlock", "exit", "rcu", "srcu", "held", "capacity"])
def test_one_line_has_the_kind_of_the_dict(what):
    g = Graph(max_held=3)
    g.take("A")
    report = {
        "self": lambda: g.take("A"), "irq": lambda: g.take("A", 1, in_irq=True), "ipi": lambda: g.ld.ipi_wait(0, True),
        "sleep": lambda: g.ld.might_sleep(0), "unlock": lambda: g.give("B"), "exit": lambda: g.ld.exit_check(0),
        "rcu": lambda: g.ld.rcu_held(0), "srcu": lambda: g.ld.srcu_held(0, 1), "held": lambda: g.ld.assert_held(0, 1),
        "capacity": lambda: [g.take(name) for name in "BCD"][-1],
    }[what]()
    kind, text = one_line(g.ld)
    assert kind == report["violation"]
    assert report["message"] in text
    assert report["message"] in format_report(report)


def test_graphs_of_two_processes(g):
    other = Graph()
    other.cls("unrelated")                      # numbers differ
    assert g.chain("A", "B") == []
    assert other.chain("B", "A", cpu=1) == []
    graph = json.loads(json.dumps(other.ld.graph()))
    (report,) = g.ld.merge(graph)
    assert report["kind"] == "cycle"
    assert pairs(report) == [("B", "A"), ("A", "B")]
    assert [step["cpu"] for step in report["cycle"]] == [1, 0]
    assert g.ld.merge(graph) == []
    assert kinds(g.chain("B", "A")) == ["cycle"]


def test_merged_irq_usage(g):
    other = Graph()
    g.chain("A")
    other.chain("A", in_irq=True)
    assert kinds(g.ld.merge(other.ld.graph())) == ["irq-inversion"]
    assert Graph().ld.merge(Graph().ld.graph()) == []


def test_merge_refuses_what_is_no_graph(g):
    with pytest.raises(ValueError, match="subclass"):
        g.ld.merge({"classes": [["A", 0, 0]], "nodes": [[0, 99, {}]], "edges": []})
