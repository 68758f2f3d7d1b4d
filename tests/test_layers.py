# SPDX-License-Identifier: GPL-2.0-only
"""Who may import whom: the layers of docs/explanation/architecture, from the imports and cimports in the sources."""
from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOPS = {"pykmm": "pykmm", "pykmm_ext": "pykmm_ext", "plugins": "pykmm_plugins"}
IMPORT = re.compile(r"^ *(?:from +(?P<of>[\w.]+) +c?import +(?P<names>\([^)]*\)|.*)|c?import +(?P<whole>[\w.]+))", re.M)
SELF_TEST = re.compile(r"(_test|_bench|torture|_check|_mutants)$")

#: layer -> the layers that it may use. Modules right below pykmm_ext are the boundary to Python.
MAY_USE: dict[str, set[str]] = {
    "machine": {"machine"},
    "kernel": {"kernel", "machine"},
    "mm": {"mm", "kernel", "machine"},
    "boundary": {"boundary", "mm", "kernel", "machine"},
    "engine": {"engine", "boundary", "mm", "kernel", "machine"},
    "plugins": {"plugin API", "mm", "kernel", "machine", "pykmm"},
    "pykmm": {"pykmm", "boundary", "plugin API", "engine", "kernel"},
}
#: What a plugin may use of the boundary.
PLUGIN_API = {"pykmm_ext.strategy", "pykmm_ext.arch"}

#: (importer, imported) against the order of the layers, and why.
EXCEPTIONS = {
    ("pykmm_ext.machine.memory", "pykmm_ext.kernel.rcu"): "machine_create() stands in for start_kernel()",
    ("pykmm_ext.machine.memory", "pykmm_ext.kernel.slab"): "the same",
    ("pykmm_ext.machine.memory", "pykmm_ext.kernel.srcu"): "the same",
    ("pykmm_ext.machine.memory", "pykmm_ext.mm.page_alloc"): "the same",
    ("pykmm_ext.machine.tlb", "pykmm_ext.mm.memory"): "switch_mm() and the fault entry are arch code over mm/",
    ("pykmm_ext.machine.tlb", "pykmm_ext.mm.pgtable"): "the same",
    ("pykmm_ext.mm.task_mmu", "pykmm_ext.handle"): "/proc/PID/maps and its kin are Python functions",
    ("pykmm_ext.mm.task_mmu", "pykmm_ext.mm_binding"): "the same",
    ("pykmm_ext.pystrategy", "pykmm_ext.engine.check"): "a violation that Python code causes is reported as one",
    ("pykmm.conformance.arches", "pykmm_ext.machine.machine_test"): "the kit drives the parts of a machine one by one",
    ("pykmm_ext.engine.host", "pykmm.tape"): "host runs what Linux runs: tapes, not the mm",
    ("pykmm_ext.engine.host_place", "pykmm.tape"): "the same",
    ("pykmm_ext.engine.host_place", "pykmm.tape_program"): "the same",
}


def modules() -> dict[str, list[pathlib.Path]]:
    """Every module of the three packages with its source files."""
    found: dict[str, list[pathlib.Path]] = {}
    for top, package in TOPS.items():
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix in (".py", ".pyx", ".pxd"):
                parts = (package, *path.relative_to(ROOT / top).with_suffix("").parts)
                found.setdefault(".".join(parts).removesuffix(".__init__"), []).append(path)
    return found


MODULES = modules()
#: A .pxd without a body: declarations and inline functions over include/kmm. For everybody.
HEADERS = {name for name, paths in MODULES.items() if [path.suffix for path in paths] == [".pxd"]}


def imports(name: str) -> set[str]:
    """The modules of the three packages that `name` uses, wherever in its files that stands."""
    found = set()
    for path in MODULES[name]:
        for match in IMPORT.finditer(path.read_text("utf-8")):
            base = match["of"] or match["whole"]
            if base in MODULES:
                names = re.findall(r"\w+", re.sub(r"#.*|\bas +\w+", "", match["names"] or ""))
                below = {f"{base}.{word}" for word in names} & MODULES.keys()
                found |= below or {base}
    return found - {name}


def layer(name: str) -> str:
    top, *rest = name.split(".")
    if top != "pykmm_ext":
        return "plugins" if top == "pykmm_plugins" else "pykmm"
    return rest[0] if rest and rest[0] in ("machine", "kernel", "mm", "engine") else "boundary"


def is_self_test(name: str) -> bool:
    return SELF_TEST.search(name) is not None and name.startswith("pykmm_ext.")


def permitted(name: str, used: str) -> bool:
    if (name, used) in EXCEPTIONS or used in HEADERS or used == "pykmm_ext":
        return True
    if is_self_test(used):
        return False
    if layer(used) == "pykmm" and layer(name) not in ("pykmm", "plugins"):
        return used in ("pykmm", "pykmm.errors")    # exceptions are Python classes
    if layer(used) == "plugins":
        package, _, module = used.rpartition(".")   # a part of its own, or what plugins of one package share
        return module.startswith("_") and name.startswith(package + ".")
    return layer(used) in MAY_USE[layer(name)] or (used in PLUGIN_API and "plugin API" in MAY_USE[layer(name)])


@pytest.mark.parametrize("name", [name for name in MODULES if not is_self_test(name)])
def test_a_module_uses_nothing_above_it(name: str) -> None:
    bad = sorted(used for used in imports(name) if not permitted(name, used))
    assert not bad, f"{name} ({layer(name)}) uses " + ", ".join(f"{used} ({layer(used)})" for used in bad)


def test_no_exception_is_out_of_date() -> None:
    gone = [pair for pair in EXCEPTIONS if pair[0] not in MODULES or pair[1] not in imports(pair[0])]
    assert not gone


def test_the_kernel_below_the_boundary_knows_no_python_package() -> None:
    """The compiled core can be read, and linked, without the library."""
    for name in MODULES:
        if layer(name) in ("machine", "kernel", "mm") and not is_self_test(name):
            assert not [used for used in imports(name) if not used.startswith("pykmm_ext")], name
