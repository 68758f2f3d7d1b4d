# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/plugin.py: registries, the manager, other packages' plugins."""
from __future__ import annotations

import importlib.metadata
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import pykmm
from pykmm import plugin
from pykmm.plugin import PluginManager, Registry


def module(name: str, hook: str, function: Callable[..., Any]) -> types.ModuleType:
    made = types.ModuleType(name)
    function.__name__ = hook
    setattr(made, hook, pykmm.hookimpl(function))
    return made


def test_registry_names_both_origins_of_a_duplicate() -> None:
    manager = PluginManager()

    def first(registry: Registry) -> None:
        registry.add("mine", dict, "the first")

    def second(registry: Registry) -> None:
        registry.add("other", dict)
        registry.add("mine", dict)

    manager.add_plugin(module("one", "pykmm_register_strategies", first), "one")
    with pytest.raises(pykmm.PluginError, match="'mine' is registered twice: by one and by two"):
        manager.add_plugin(module("two", "pykmm_register_strategies", second), "two")
    assert manager.strategies.names() == ["mine"]       # nothing of the refused plugin stays
    assert not manager.has_plugin("two")
    assert manager.strategies.entry("mine").description == "the first"
    assert manager.strategies.get("mine") is dict


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown strategy 'nope'; known: .*mmap_sem.*spf"):
        plugin.get_plugin_manager().strategies.get("nope")
    with pytest.raises(ValueError, match="unknown arch 'vax'; known: x86"):
        pykmm.Machine(arch="vax")


@pytest.mark.parametrize("name", ["", " x", "a,b", "a[b]", "a=b", 3])
def test_bad_names_are_refused(name: Any) -> None:
    with pytest.raises(pykmm.PluginError, match="name"):
        Registry("strategy").add(name, dict)
    with pytest.raises(pykmm.PluginError, match="callable"):
        Registry("strategy").add("x", 3)  # type: ignore[arg-type]


def test_of_very_many_names_those_are_listed_that_are_like_it() -> None:
    registry = Registry("strategy")
    for number in range(60):
        registry.add(f"mine-{number}", dict)
    registry.add("yours", dict)
    with pytest.raises(ValueError, match=r"^unknown strategy 'your'; did you mean yours\? "
                       "'pykmm list strategies' shows all 61$"):
        registry.get("your")


def test_classes_describe_themselves() -> None:
    class Words:
        """Its docstring.

        More.
        """

    class Own(Words):
        description = "its own words"

    registry = Registry("strategy")
    for name, factory, text in (("a", Words, ""), ("b", Own, ""), ("c", Words, "given"), ("d", lambda: 0, "")):
        registry.add(name, factory, text)
    assert [entry.description for entry in registry] == ["Its docstring", "its own words", "given", ""]


def test_factories_that_make_something_else() -> None:
    manager = PluginManager()

    def add(registry: Registry) -> None:
        registry.add("none", lambda: None)
        registry.add("arguments", lambda x: x)
        registry.add("raises", lambda: 1 // 0)

    manager.add_plugin(module("theirs", "pykmm_register_strategies", add), "theirs", distribution="theirs 1.0")
    for name, message in (("none", r"its factory made a NoneType, and no pykmm_ext\.strategy\.Strategy"),
                          ("arguments", "cannot be made: TypeError: .*missing 1 required positional argument"),
                          ("raises", r"cannot be made: ZeroDivisionError: .* \(test_plugin\.py:\d+\)")):
        with pytest.raises(pykmm.PluginError, match=rf"strategy '{name}' \(theirs 1\.0\)(?:: | ){message}"):
            manager.strategies.make(name)


def test_options_in_names() -> None:
    registry = Registry("strategy")
    registry.add("mine", dict, options={"size": ("small", "large"), "any": ()})
    registry.add("plain", dict)
    assert registry.make("mine") == {}
    assert registry.make("mine[size=large, any=thing]") == {"size": "large", "any": "thing"}
    assert registry.parse("mine[]")[1] == {}
    for text, message in (
            ("mine[size=huge]", "strategy 'mine': unknown size 'huge'; known: small, large"),
            ("mine[colour=red]", "strategy 'mine' has no option 'colour'; its options: size, any"),
            ("plain[size=small]", "strategy 'plain' has no option 'size'; it has none"),
            ("other[size=small]", "unknown strategy 'other'; known: mine, plain"),
            ("mine[size]", "'size' in 'mine[size]' is no option: expected option=value"),
            ("mine[size=small,size=large]", "option 'size' is given twice"),
            ("mine[size=small", "is no name with options"), ("mine]", "is no name with options")):
        with pytest.raises(ValueError) as error:
            registry.make(text)
        assert message in str(error.value)
    assert plugin.split_names("a, b[c=d,e=f],, g") == ["a", "b[c=d,e=f]", "g"]


def test_a_plugin_without_hooks_is_an_error() -> None:
    manager = PluginManager()
    with pytest.raises(pykmm.PluginError, match="no pykmm hook"):
        manager.register(types.ModuleType("empty"), "empty")
    assert not manager.has_plugin("empty")
    with pytest.raises(pykmm.PluginError, match=r"pykmm_registr_strategies'; did you mean "
                       r"pykmm_register_strategies\? The hooks are pykmm_mm_created, "):
        manager.register(module("typo", "pykmm_registr_strategies", lambda registry: None), "typo")
    assert not manager.has_plugin("typo")


class FakeDistribution:
    name = "their-package"
    version = "2.1"


class FakePoint:
    dist: FakeDistribution | None = None
    value = "third_party"

    def __init__(self, name: str, plugin: object) -> None:
        self.name = name
        self.plugin = plugin

    def load(self) -> object:
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(registry: Registry) -> None:
        registry.add("third", dict)

    good = module("good", "pykmm_register_workloads", add)
    points = [FakePoint("good", good), FakePoint("bad", ImportError("no libx"))]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "pykmm" else [])
    with pytest.raises(pykmm.PluginError, match=r"plugin 'bad'.*ImportError: no libx.*; PYKMM_DISABLE_PLUGINS=bad"):
        plugin.make_plugin_manager()
    monkeypatch.setenv("PYKMM_DISABLE_PLUGINS", "bad")
    assert "third" in plugin.make_plugin_manager().workloads
    for value in ("1", "all", "good, bad"):
        monkeypatch.setenv("PYKMM_DISABLE_PLUGINS", value)
        manager = plugin.make_plugin_manager()
        assert "third" not in manager.workloads
        assert manager.strategies.names()[:2] == ["mmap_sem", "spf"]


def test_hooks_are_called() -> None:
    manager = plugin.get_plugin_manager()
    seen: list[object] = []
    watcher = types.ModuleType("watcher")

    @pykmm.hookimpl
    def pykmm_mm_created(mm: pykmm.MmStruct) -> None:
        seen.append(mm)

    @pykmm.hookimpl
    def pykmm_report(result: pykmm.RunResult) -> None:
        seen.append(result.engine)

    watcher.pykmm_mm_created = pykmm_mm_created  # type: ignore[attr-defined]
    watcher.pykmm_report = pykmm_report  # type: ignore[attr-defined]
    manager.add_plugin(watcher, "watcher")
    try:
        with pykmm.Machine() as machine:
            mm = machine.mm()
            child = mm.fork()
            tape = pykmm.Tape()
            tape.thread().mmap(4096)
            machine.run(tape)
    finally:
        manager.unregister(watcher)
    assert seen == [mm, child, "native"]


def test_importing_pykmm_imports_nothing_heavy() -> None:
    import subprocess

    program = ("import sys, pykmm; print([m for m in ('numpy', 'pluggy', 'rich', 'typer', 'pykmm_ext.binding') "
               "if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pykmm.nonsense  # noqa: B018
    assert {"Machine", "Tape", "compare"} <= set(dir(pykmm))


def test_duplicates_name_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(registry: Registry) -> None:
        registry.add("spf", dict, "mine is better")

    point = FakePoint("better", module("better", "pykmm_register_strategies", add))
    point.dist = FakeDistribution()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    with pytest.raises(pykmm.PluginError, match=r"strategy 'spf' is registered twice: by strategies.spf \(built in\) "
                                                r"and by better \(their-package 2\.1\)"):
        plugin.make_plugin_manager()


def test_two_plugins_of_one_name() -> None:
    manager = PluginManager()

    def add(registry: Registry) -> None:
        registry.add("thing", dict)

    manager.add_plugin(module("one", "pykmm_register_workloads", add), "mine")
    with pytest.raises(pykmm.PluginError, match="plugin 'mine' is registered twice"):
        manager.add_plugin(module("two", "pykmm_register_workloads", add), "mine")
    assert manager.workloads.names() == ["thing"]


class StalePoint(FakePoint):
    """What Cython does when a compiled module meets another version of what it was compiled against."""

    def load(self) -> object:
        if isinstance(self.plugin, Warning):
            warnings.warn(self.plugin, stacklevel=1)
        elif isinstance(self.plugin, Exception):
            raise self.plugin
        return module("stale", "pykmm_register_strategies", lambda registry: None)


@pytest.mark.parametrize("error", [
    RuntimeWarning("pykmm_ext.strategy.Strategy size changed, may indicate binary incompatibility. Expected 64 from C "
                   "header, got 72 from PyObject"),
    TypeError("C function pykmm_ext.mm.fault.handle_fault_mmap_sem has wrong signature (expected int (void), got long "
              "(void))"),
    ImportError("pykmm_ext.mm.fault does not export expected C function handle_fault_mmap_sem"),
])
def test_a_plugin_that_was_compiled_against_another_pykmm(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [StalePoint("old", error)])
    with pytest.raises(pykmm.PluginError, match=r"plugin 'old'.*it was compiled against another pykmm: compile and "
                                                r"install it again; PYKMM_DISABLE_PLUGINS=old leaves it out"):
        plugin.make_plugin_manager()


def test_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(registry: Registry) -> None:
        registry.add("theirs", dict, "one\n   line", options={"size": ("small", "large")})

    point = FakePoint("third", module("third", "pykmm_register_strategies", add))
    point.dist = FakeDistribution()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    monkeypatch.setattr(plugin, "_manager", plugin.make_plugin_manager())
    found = plugin.inventory()
    assert {"strategies", "arch_backends", "importers", "workloads", "scenarios", "engines"} <= set(found)
    assert found["strategies"][-1] == {
        "name": "theirs", "description": "one line", "source": "their-package 2.1", "plugin": "third",
        "options": {"size": ["small", "large"]}}
    for rows in found.values():
        for row in rows:
            assert row["description"], row
            assert "\n" not in row["description"]
            assert row["source"] == ("their-package 2.1" if row["name"] == "theirs" else "built in")
    assert [row["name"] for row in found["engines"]][:3] == ["native", "host", "check"]
    plugin.get_plugin_manager().strategies.add("added", dict)
    assert plugin.inventory()["strategies"][-1]["source"] == "added by builtins"


def test_a_plugin_under_a_second_name() -> None:
    manager = PluginManager()
    mine = module("one", "pykmm_register_workloads", lambda registry: registry.add("thing", dict))
    manager.add_plugin(mine, "mine")
    with pytest.raises(pykmm.PluginError, match="plugin 'other' is registered already, as 'mine'"):
        manager.add_plugin(mine, "other")
    assert manager.workloads.names() == ["thing"]
