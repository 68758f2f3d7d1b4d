# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/lockdep_proc.c: what lockdep has found, as text and as JSON, and its graph from process to process.

An exploration that is spread over processes has a graph in each. They are one graph again after graph_dict() and
merge_graph(): a cycle whose edges were found by different processes is reported then.
"""
from libc.string cimport memset

from pykmm_ext.kernel.lockdep cimport (
    LOCKDEP_CAPACITY, LOCKDEP_CYCLE, LOCKDEP_EXIT, LOCKDEP_IPI_WAIT, LOCKDEP_IRQ_INVERSION, LOCKDEP_NOT_HELD,
    LOCKDEP_RCU_NOT_HELD, LOCKDEP_SELF, LOCKDEP_SLEEP, LOCKDEP_SRCU_NOT_HELD, LOCKDEP_SUBCLASSES, LOCKDEP_UNLOCK,
    lockdep_class, lockdep_edge, lockdep_kind, lockdep_node, lockdep_place, lockdep_report_lock, lockdep_step,
)
from pykmm_ext.kernel.lockdep_graph cimport lockdep_merge_edge, lockdep_merge_usage
from pykmm_ext.machine.cpu cimport u32

cdef dict VIOLATIONS = {
    <int>LOCKDEP_CYCLE: ("cycle", "lock-order"),
    <int>LOCKDEP_SELF: ("self-deadlock", "lock-order"),
    <int>LOCKDEP_IRQ_INVERSION: ("irq-inversion", "lock-order"),
    <int>LOCKDEP_SLEEP: ("sleep-in-atomic", "sleep-in-atomic"),
    <int>LOCKDEP_IPI_WAIT: ("ipi-wait", "sleep-in-atomic"),
    <int>LOCKDEP_UNLOCK: ("bad-unlock", "lock-held"),
    <int>LOCKDEP_NOT_HELD: ("lock-not-held", "assertion"),
    <int>LOCKDEP_RCU_NOT_HELD: ("rcu-not-held", "rcu-not-held"),
    <int>LOCKDEP_SRCU_NOT_HELD: ("srcu-not-held", "rcu-not-held"),
    <int>LOCKDEP_EXIT: ("held-at-exit", "lock-held"),
    <int>LOCKDEP_CAPACITY: ("capacity", "assertion"),
}
cdef tuple MODES = ("write", "read", "recursive read")
# Names and places in a struct lockdep live as long as it does: what comes from a dict is kept here, once.
cdef dict interned = {}


cdef extern from *:
    """
    #include <stdarg.h>
    #include <stdio.h>
    /* snprintf() at buf + at; returns where the text ends now. */
    static size_t kmm_put(char *buf, size_t n, size_t at, const char *format, ...)
    {
        va_list args;
        int more;
        va_start(args, format);
        more = vsnprintf(buf + at, n - at, format, args);
        va_end(args);
        return more < 0 ? at : at + (size_t)more < n ? at + (size_t)more : n - 1;
    }
    """
    size_t put "kmm_put"(char *buf, size_t n, size_t at, const char *format, ...) noexcept nogil


# Context: any, no GIL.
cdef size_t put_lock(char *buf, size_t n, size_t at, const char *before, const char *name, u32 subclass) noexcept nogil:
    if subclass:
        return put(buf, n, at, b"%s%s/%u", before, name, subclass)
    return put(buf, n, at, b"%s%s", before, name)


# Context: any, no GIL, as violation_message(). The same names as in VIOLATIONS.
cdef const char *violation_kind(const lockdep_report *r) noexcept nogil:
    if r.violation == LOCKDEP_CYCLE or r.violation == LOCKDEP_SELF or r.violation == LOCKDEP_IRQ_INVERSION:
        return b"lock-order"
    if r.violation == LOCKDEP_SLEEP or r.violation == LOCKDEP_IPI_WAIT:
        return b"sleep-in-atomic"
    if r.violation == LOCKDEP_RCU_NOT_HELD or r.violation == LOCKDEP_SRCU_NOT_HELD:
        return b"rcu-not-held"
    if r.violation == LOCKDEP_UNLOCK or r.violation == LOCKDEP_EXIT:
        return b"lock-held"
    return b"assertion"


cdef void violation_message(const lockdep_report *r, char *buf, size_t n) noexcept nogil:
    cdef size_t at = 0
    cdef const char *where
    cdef u32 i
    cdef const lockdep_step *s
    cdef const lockdep_report_lock *h
    at = put(buf, n, at, b"Cpu %u: %s", r.cpu, r.message)
    if r.name != NULL and r.nr_steps == 0:
        at = put_lock(buf, n, at, b": ", r.name, r.subclass)
    for i in range(r.nr_steps):
        s = &r.steps[i]
        at = put_lock(buf, n, at, b"; " if i else b": ", s.held, s.held_subclass)
        at = put_lock(buf, n, at, b" =irq=> " if s.irq else b" -> ", s.taken, s.taken_subclass)
        where = s.taken_where
        if where == NULL:
            where = b"?"
        at = put(buf, n, at, b" (Cpu %u, %s)", s.cpu, where)
    if r.nr_steps == 0:
        for i in range(r.nr_held):
            h = &r.held[i]
            at = put_lock(buf, n, at, b", " if i else b"; holds ", h.name, h.subclass)


cdef object text(const char *s):
    return None if s == NULL else (<bytes>s).decode("utf-8", "replace")


cdef const char *intern_text(object s) except? NULL:
    if s is None:
        return NULL
    cdef bytes kept = interned.setdefault(s, s.encode())
    return kept


cdef str name_of(const char *name, u32 subclass):
    return f"{text(name)}/{subclass}" if subclass else text(name)


cdef object report_dict(const lockdep_report *r):
    cdef u32 i
    cdef const lockdep_step *s
    cdef const lockdep_report_lock *h
    if r == NULL:
        return None
    kind, violation = VIOLATIONS[<int>r.violation]
    steps = []
    for i in range(r.nr_steps):
        s = &r.steps[i]
        steps.append({
            "held": name_of(s.held, s.held_subclass), "taken": name_of(s.taken, s.taken_subclass),
            "held_where": text(s.held_where), "taken_where": text(s.taken_where),
            "cpu": s.cpu, "execution": s.execution, "held_for_reading": bool(s.held_shared),
            "taken_by_recursive_reader": bool(s.taken_recursive), "interrupt": bool(s.irq),
        })
    held = []
    for i in range(r.nr_held):
        h = &r.held[i]
        held.append({
            "name": name_of(h.name, h.subclass), "mode": MODES[h.mode], "address": <size_t>h.addr, "where": text(h.where),
            "trylock": bool(h.trylock), "interrupt": bool(h.in_irq),
        })
    return {
        "kind": kind, "violation": violation, "message": text(r.message), "where": text(r.where),
        "what": None if r.name == NULL else name_of(r.name, r.subclass), "mode": MODES[r.mode],
        "address": <size_t>r.addr, "cpu": r.cpu, "execution": r.execution, "irqs_off": bool(r.irqs_off),
        "interrupt": bool(r.in_irq), "cycle": steps, "truncated": bool(r.truncated), "held": held,
    }


def format_report(report: dict) -> str:
    """Text of a report: what happened, the cycle edge by edge, and what the CPU holds.

    :param report: a lockdep report as a dict, as it stands in a check's JSON.
    """
    state = " in an IPI handler" if report["interrupt"] else " with IRQs off" if report["irqs_off"] else ""
    lines = [f"{report['violation']}: {report['message']}",
             f"  CPU {report['cpu']}{state}, execution {report['execution']}"
             + (f", at {report['where']}" if report["where"] else "")
             + (f": {report['what']}" if report["what"] else "")]
    if report["cycle"]:
        lines.append("  the cycle, first the edge that closed it:" if report["kind"] == "cycle" else "  the cycle:")
        width = max(len(step["held"]) for step in report["cycle"])
        for number, step in enumerate(report["cycle"], 1):
            arrow = "=irq=>" if step["interrupt"] else "->"
            marks = [mark for mark, there in (("held for reading", step["held_for_reading"]),
                                              ("taken by a recursive reader", step["taken_by_recursive_reader"])) if there]
            lines.append(f"    {number}. {step['held']:{width}} {arrow} {step['taken']}"
                         + (f"  ({', '.join(marks)})" if marks else ""))
            places = f"held since {step['held_where'] or '?'}, asked for at {step['taken_where'] or '?'}"
            if step["interrupt"]:
                places = f"held with IRQs on at {step['held_where'] or '?'}, handler at {step['taken_where'] or '?'}"
            lines.append(f"       {places}; CPU {step['cpu']}, execution {step['execution']}")
        if report["truncated"]:
            lines.append("    (longer than can be shown)")
    if report["held"]:
        lines.append(f"  CPU {report['cpu']} holds, oldest first:")
        for lock in report["held"]:
            extra = (", trylock" if lock["trylock"] else "") + (", in the handler" if lock["interrupt"] else "")
            lines.append(f"    {lock['name']} ({lock['mode']}{extra}) since {lock['where'] or '?'}")
    else:
        lines.append(f"  CPU {report['cpu']} holds no lock")
    return "\n".join(lines)


# ---- the graph ------------------------------------------------------------------------------------------------------------

cdef dict place_dict(const lockdep_place *p):
    return {"where": text(p.where), "cpu": p.cpu, "execution": p.execution}


cdef dict graph_dict(const lockdep *ld):
    cdef u32 i, bit
    cdef const lockdep_node *n
    cdef const lockdep_edge *e
    classes = [[text(ld.classes[i].name), ld.classes[i].kind, ld.classes[i].flags] for i in range(ld.nr_classes)]
    nodes = []
    for i in range(ld.nr_nodes):
        n = &ld.nodes[i]
        nodes.append([n.cls, n.subclass, {str(bit): place_dict(&n.place[bit]) for bit in range(4) if n.usage & (1 << bit)}])
    edges = []
    for i in range(1, ld.nr_edges):
        e = &ld.edges[i]
        edges.append({"held": e.held, "taken": e.taken, "shared": e.shared, "recursive": e.recursive,
                      "held_where": text(e.held_where), **place_dict(&e.place)})
    return {"enabled": bool(ld.enabled), "classes": classes, "nodes": nodes, "edges": edges}


cdef int fill_place(lockdep_place *p, dict place) except -1:
    p.where = intern_text(place["where"])
    p.cpu = place["cpu"]
    p.execution = place["execution"]
    return 0


cdef list merge_graph(lockdep *ld, dict graph):
    cdef lockdep_edge edge
    cdef lockdep_place place
    cdef int flag
    reports = []
    numbers = [lockdep_class(ld, intern_text(name), <lockdep_kind><int>kind, flags) for name, kind, flags in graph["classes"]]
    nodes = [(numbers[cls], subclass) for cls, subclass, _ in graph["nodes"]]
    if any(not 0 <= subclass < LOCKDEP_SUBCLASSES for _, subclass in nodes):
        raise ValueError("no graph of lockdep: a subclass is out of range")
    for (cls, subclass), (_, _, usage) in zip(nodes, graph["nodes"], strict=True):
        for bit, where in usage.items():
            fill_place(&place, where)
            flag = 1 << int(bit)
            reports.append(report_dict(lockdep_merge_usage(ld, cls, subclass, flag, &place)))
    for item in graph["edges"]:
        memset(&edge, 0, sizeof(edge))
        edge.shared = item["shared"]
        edge.recursive = item["recursive"]
        edge.held_where = intern_text(item["held_where"])
        fill_place(&edge.place, item)
        held, taken = nodes[item["held"]], nodes[item["taken"]]
        reports.append(report_dict(lockdep_merge_edge(ld, &edge, held[0], held[1], taken[0], taken[1])))
    return [report for report in reports if report is not None]
