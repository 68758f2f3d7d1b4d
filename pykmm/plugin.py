# SPDX-License-Identifier: GPL-2.0-only
"""The plugin manager: what is built in, what other packages add, and the registries they fill.

The built-in plugins are :data:`DEFAULT_PLUGINS`, in that order. Other packages announce theirs in the entry-point
group ``pykmm``; they are loaded at the first :func:`get_plugin_manager`, not when pykmm is imported. The environment
variable ``PYKMM_DISABLE_PLUGINS`` turns them off: ``1`` or ``all`` = every one, otherwise a comma-separated list of
entry-point names. Built-in plugins are never turned off.
"""
from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from pykmm import hookspecs
from pykmm.blame import in_words, unknown_name
from pykmm.errors import PluginError, PykmmError

__all__ = [
    "BUILT_IN", "DEFAULT_PLUGINS", "DISABLE_VARIABLE", "ENTRY_POINT_GROUP", "Entry", "PluginManager", "Registry",
    "get_plugin_manager", "inventory", "make_plugin_manager", "registered_packages", "split_names", "split_options",
]

ENTRY_POINT_GROUP = "pykmm"
DISABLE_VARIABLE = "PYKMM_DISABLE_PLUGINS"

#: Modules below ``pykmm_plugins``, in the order in which they are registered.
DEFAULT_PLUGINS: tuple[str, ...] = (
    "strategies.mmap_sem",
    "strategies.spf",
    "strategies.spf_rfc5",
    "strategies.spf_2021",
    "strategies.per_vma_lock",
    "strategies.lockless_gup",
    "arch.x86",
    "arch.ppc64",
    "importers.perf_trace",
    "importers.strace",
    "workloads.will_it_scale",
    "workloads.ebizzy",
    "workloads.faults",
    "workloads.cortenmm",
    "workloads.mtest06",
    "workloads.gup_test",
    "scenarios.races",
    "scenarios.speculative",
    "scenarios.spf_2021",
    "scenarios.per_vma_lock",
    "scenarios.plain",
    "scenarios.gup",
    "scenarios.weak",
)


#: Entry.distribution of what pykmm brings itself.
BUILT_IN = "built in"


@dataclass(frozen=True)
class Entry:
    """One registered name."""

    name: str
    factory: Callable[..., Any]
    description: str
    origin: str  #: the plugin that added it
    #: option -> its values, the first is the default
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: "name version" of the package that the plugin came with; BUILT_IN; "" = a program has added it
    distribution: str = ""

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return self.distribution or f"added by {self.origin}"


_OPTIONS = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """``"name[a=1,b=2]"`` -> ``("name", {"a": "1", "b": "2"})``. ValueError where brackets or equals signs miss."""
    if "[" not in text and "]" not in text:
        return text, {}
    match = _OPTIONS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no name with options: expected name[option=value,option=value]")
    options: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in match[2].split(","))):
        option, equals, value = (word.strip() for word in part.partition("="))
        if not (option and equals and value):
            raise ValueError(f"{part!r} in {text!r} is no option: expected option=value")
        if option in options:
            raise ValueError(f"option {option!r} is given twice in {text!r}")
        options[option] = value
    return match[1].strip(), options


def split_names(text: str) -> list[str]:
    """The parts of a comma-separated list of names; commas inside brackets belong to a name's options."""
    return [word for word in (word.strip() for word in re.split(r",(?![^\[]*\])", text)) if word]


class Registry:
    """Names of one kind (``kind`` is singular: "strategy") and the factories behind them."""

    def __init__(self, kind: str, product: Callable[[], type] | None = None) -> None:
        self.kind = kind
        self._product = product         # gives the class of what factories make; None: anything
        self.origin: str | None = None  #: the plugin whose hook runs now
        self.distribution = ""          #: and the package that it came with
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, factory: Callable[..., Any], description: str = "", *,
            options: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Register `factory` as `name`. A name that is taken raises :class:`PluginError` naming both origins.

        ``description``: one line for people; of a class its own ``description``, or the first line of its docstring, if
        not given. ``options`` says which keyword arguments the factory takes from a name such as
        ``name[option=value]`` (strings; an empty tuple of values: any).
        """
        if not isinstance(name, str) or not name or name != name.strip() or set(name) & set(",[]="):
            raise PluginError(f"{self.kind} name {name!r}: must be a non-empty string without commas, brackets, equals "
                              "signs or outer spaces")
        if not callable(factory):
            raise PluginError(f"{self.kind} {name!r}: the factory must be callable, not {type(factory).__name__}")
        origin = self.origin or str(getattr(factory, "__module__", None) or type(factory).__module__)
        old = self._entries.get(name)
        if old is not None:
            package = f" ({self.distribution})" if self.origin and self.distribution else ""
            raise PluginError(f"{self.kind} {name!r} is registered twice: by {old.origin}"
                              + (f" ({old.distribution})" if old.distribution else "") + f" and by {origin}{package}")
        text = " ".join((description or _own_words(factory)).split())
        self._entries[name] = Entry(name, factory, text, origin, dict(options or {}),
                                    self.distribution if self.origin else "")

    def get(self, name: str) -> Callable[..., Any]:
        """The factory of `name`. An unknown name raises ValueError that lists the known ones."""
        return self.entry(name).factory

    def entry(self, name: str) -> Entry:
        """Everything known about `name`; errors as :meth:`get`."""
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            kinds = f"{self.kind[:-1]}ies" if self.kind.endswith("y") else f"{self.kind}{'e' * (self.kind == 'arch')}s"
            raise ValueError(unknown_name(self.kind, name, self._entries, f"pykmm list {kinds}")) from None

    def parse(self, text: object) -> tuple[Entry, dict[str, str]]:
        """What "name" or "name[option=value,option=value]" names.

        ValueError for an unknown name, an unknown option and an unknown value: each lists the known ones. TypeError: no
        name at all.
        """
        if not isinstance(text, str):
            plural = {"arch": "arches", "strategy": "strategies"}.get(self.kind, f"{self.kind}s")
            raise TypeError(f"{self.kind} must be a name, not {text!r}; to give one: "
                            f"pykmm.get_plugin_manager().{plural}.add(\"name\", factory)")
        name, options = split_options(text)
        entry = self.entry(name)
        for option, value in options.items():
            if option not in entry.options:
                known = ", ".join(entry.options)
                raise ValueError(f"{self.kind} {name!r} has no option {option!r}; "
                                 + (f"its options: {known}" if known else "it has none"))
            values = entry.options[option]
            if values and value not in values:
                raise ValueError(f"{self.kind} {name!r}: unknown {option} {value!r}; known: {', '.join(values)}")
        return entry, options

    def make(self, text: str) -> Any:
        """A new object of the factory that :meth:`parse` finds, made with the options. Errors as there.

        PluginError names the plugin whose factory raises something, or makes something else.
        """
        entry, options = self.parse(text)
        return self.call(entry, options)

    def call(self, entry: Entry, options: Mapping[str, Any]) -> Any:
        """What the factory of an entry makes; PluginError as of :meth:`make`."""
        try:
            made = entry.factory(**options)
        except PykmmError:
            raise
        except Exception as error:
            raise PluginError(f"{self.kind} {entry.name!r} ({entry.source}) cannot be made: {in_words(error)}",
                              entry.origin) from error
        if self._product is not None and not isinstance(made, product := self._product()):
            raise PluginError(f"{self.kind} {entry.name!r} ({entry.source}): its factory made a "
                              f"{type(made).__name__}, and no {product.__module__}.{product.__name__}", entry.origin)
        return made

    def names(self) -> list[str]:
        """The names in the order of their registration."""
        return list(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)


def _own_words(factory: Callable[..., Any]) -> str:
    """How a class describes itself."""
    if not isinstance(factory, type):
        return ""
    found = getattr(factory, "description", None)
    if isinstance(found, str) and found:
        return found
    return (factory.__doc__ or "").strip().partition("\n")[0].removesuffix(".")


def _strategy() -> type:
    from pykmm_ext.strategy import Strategy

    return Strategy


def _arch() -> type:
    from pykmm_ext.arch import Arch

    return Arch


def _tape() -> type:
    from pykmm.tape import Tape

    return Tape


def _scenario() -> type:
    from pykmm.checking.scenario import Scenario

    return Scenario


class PluginManager(pluggy.PluginManager):
    """pluggy's manager with pykmm's hooks, registries, and an error where pluggy says nothing."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT_NAME)
        self.add_hookspecs(hookspecs)
        self.strategies = Registry("strategy", _strategy)
        self.arches = Registry("arch", _arch)
        self.importers = Registry("importer")
        self.workloads = Registry("workload", _tape)
        self.scenarios = Registry("scenario", _scenario)

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """As pluggy's, but a plugin without a single hook is a :class:`PluginError`.

        pluggy 1.7 passes over ``@hookimpl`` on functions compiled by Cython without a word.
        """
        try:
            canonical = super().register(plugin, name)
            if canonical is not None and self.get_hookcallers(plugin):
                self.check_pending()
        except pluggy.PluginValidationError as error:
            if self.is_registered(plugin):
                self.unregister(plugin)
            raise PluginError(_wrong_hook(error)) from error
        if canonical is not None and not self.get_hookcallers(plugin):
            self.unregister(plugin)
            raise PluginError(
                f"plugin {canonical!r} has no pykmm hook: its hook functions need @pykmm.hookimpl and must be plain "
                "Python functions (pluggy passes over functions compiled by Cython)"
            )
        return canonical

    def add_plugin(self, plugin: object, name: str | None = None, *, distribution: str = "") -> None:
        """Register `plugin` and let it fill the registries: what tests and notebooks use.

        Nothing of the plugin stays behind when it is refused. `distribution`: the package it came with, for people.
        """
        if name is not None and self.has_plugin(name):
            raise PluginError(f"plugin {name!r} is registered twice")
        if name is not None and (other := self.get_name(plugin)) is not None:
            raise PluginError(f"plugin {name!r} is registered already, as {other!r}")
        canonical = self.register(plugin, name)
        if canonical is None:
            return
        registries = self._registries()
        before = [dict(registry._entries) for registry in registries.values()]
        try:
            for hook, registry in registries.items():
                registry.origin = canonical
                registry.distribution = distribution
                for impl in getattr(self.hook, hook).get_hookimpls():
                    if impl.plugin is plugin:
                        impl.function(**({"registry": registry} if impl.argnames else {}))
                registry.origin = None
        except BaseException:
            for registry, entries in zip(registries.values(), before, strict=True):
                registry._entries = entries
                registry.origin = None
            self.unregister(plugin)
            raise

    def _registries(self) -> dict[str, Registry]:
        return {
            "pykmm_register_strategies": self.strategies,
            "pykmm_register_arch": self.arches,
            "pykmm_register_importers": self.importers,
            "pykmm_register_workloads": self.workloads,
            "pykmm_register_scenarios": self.scenarios,
        }


def _wrong_hook(error: pluggy.PluginValidationError) -> str:
    """pluggy's words in one line, and the hooks that there are."""
    text = " ".join(str(error).split())
    hooks = sorted(name for name in vars(hookspecs) if name.startswith("pykmm_"))
    wrong = re.search(r"unknown hook '(\w+)'", text)
    close = difflib.get_close_matches(wrong[1], hooks, n=1) if wrong else []
    if wrong is not None:
        text = f"unknown hook {wrong[1]!r}"
    return text + (f"; did you mean {close[0]}?" if close else "") + f" The hooks are {', '.join(hooks)}"


def _third_party(manager: PluginManager) -> None:
    disabled = os.environ.get(DISABLE_VARIABLE, "").strip()
    if disabled in ("1", "all"):
        return
    names = {word.strip() for word in disabled.split(",")}
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        if point.name in names:
            continue
        origin = f"plugin {point.name!r} ({point.value}"
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an entry point"
        origin += f" of {distribution})" if point.dist is not None else ")"
        try:
            manager.add_plugin(_load(point), point.name, distribution=distribution)
        except (Exception, SystemExit) as error:
            what = str(error) if isinstance(error, PykmmError) else in_words(error)
            raise PluginError(f"{origin} cannot be loaded: {what}; "
                              f"{_stale(error)}{DISABLE_VARIABLE}={point.name} leaves it out", point.name) from error


#: What Cython says when a compiled module meets another version of what it was compiled against.
_STALE = re.compile(r"size changed, may indicate binary incompatibility|has wrong signature \(expected|"
                    "does not export expected")


def _load(point: importlib.metadata.EntryPoint) -> Any:
    """A structure that has another size is an error here, not a warning that nobody sees."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*size changed, may indicate binary incompatibility")
        return point.load()


def _stale(error: BaseException) -> str:
    if _STALE.search(str(error)) is None:
        return ""
    return "it was compiled against another pykmm: compile and install it again; "


def make_plugin_manager(*, third_party: bool = True) -> PluginManager:
    """A fresh manager with the built-in plugins, and those of other packages if `third_party`."""
    manager = PluginManager()
    for name in DEFAULT_PLUGINS:
        manager.add_plugin(importlib.import_module(f"pykmm_plugins.{name}"), name, distribution=BUILT_IN)
    if third_party:
        _third_party(manager)
    return manager


_manager: PluginManager | None = None
_lock = threading.Lock()


def get_plugin_manager() -> PluginManager:
    """The manager of this process, made at the first call."""
    global _manager
    if _manager is None:
        with _lock:
            if _manager is None:
                _manager = make_plugin_manager()
    return _manager


def registered_packages() -> frozenset[str]:
    """Top-level names of the modules that plugins of other packages, and those of programs, come from."""
    if _manager is None:
        return frozenset()
    found = set()
    for name, plugin in _manager.list_name_plugin():
        if plugin is not None and name not in DEFAULT_PLUGINS:
            found.add(str(getattr(plugin, "__name__", None) or type(plugin).__module__).partition(".")[0])
    for registry in _manager._registries().values():
        found.update(str(getattr(entry.factory, "__module__", "")).partition(".")[0] for entry in registry
                     if entry.distribution != BUILT_IN)
    return frozenset(found - {"", "pykmm", "pykmm_ext", "pykmm_plugins", "functools", "builtins"})


def inventory() -> dict[str, list[dict[str, Any]]]:
    """Everything that can be named, by kind: rows of name, description, source, plugin and options, ready for JSON."""
    from pykmm.machine import ENGINE_DESCRIPTIONS
    from pykmm.suites import SUITES
    from pykmm.workload import parameters

    manager = get_plugin_manager()
    kinds = {"strategies": manager.strategies, "arch_backends": manager.arches, "importers": manager.importers,
             "workloads": manager.workloads, "scenarios": manager.scenarios}
    found = {title: [{"name": entry.name, "description": entry.description, "source": entry.source,
                      "plugin": entry.origin, "options": {key: list(values) for key, values in entry.options.items()}}
                     for entry in registry] for title, registry in kinds.items()}
    for row, entry in zip(found["workloads"], manager.workloads, strict=True):
        row["parameters"] = {name: value for name, value in parameters(entry.factory).items()
                             if not entry.options.get(name) and name != "page"}
    found["engines"] = [{"name": name, "description": text, "source": BUILT_IN, "plugin": "", "options": {}}
                        for name, text in ENGINE_DESCRIPTIONS.items()]
    found["suites"] = [{"name": name, "description": suite.description, "source": BUILT_IN, "plugin": "", "options": {}}
                       for name, suite in SUITES.items()]
    return found
