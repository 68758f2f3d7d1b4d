# SPDX-License-Identifier: GPL-2.0-only
"""The hooks that a pykmm plugin may implement.

A plugin is a module (or an object) with functions of these names, decorated with ``pykmm.hookimpl``, and a
line in its package's metadata::

    [project.entry-points.pykmm]
    my-plugin = "my_package.my_plugin"

Hook functions live in plain ``.py`` files: pluggy passes over functions that Cython compiled.
Registration happens once per process, at the first use of the plugin manager. No hook is on the fault path: a hook
chooses *who* handles faults when a Machine is built.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pykmm.machine import MmStruct, RunResult
    from pykmm.plugin import Registry

PROJECT_NAME = "pykmm"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def pykmm_register_strategies(registry: Registry) -> None:
    """Add fault strategies: ``registry.add(name, factory, description=...)``.

    ``factory()`` returns a :class:`pykmm_ext.strategy.Strategy`. It is called once per Machine.
    """


@hookspec
def pykmm_register_arch(registry: Registry) -> None:
    """Add arch backends: ``factory()`` returns a :class:`pykmm_ext.arch.Arch`. It is called once per Machine."""


@hookspec
def pykmm_register_importers(registry: Registry) -> None:
    """Add readers of recordings: ``factory()`` returns an importer as :mod:`pykmm.tape` describes it."""


@hookspec
def pykmm_register_workloads(registry: Registry) -> None:
    """Add generated tapes: ``factory(**parameters)`` returns a :class:`pykmm.Tape`."""


@hookspec
def pykmm_register_scenarios(registry: Registry) -> None:
    """Add scenarios of the check engine: ``pykmm.checking.scenario.register(registry, Scenario(...), ...)``."""


@hookspec
def pykmm_mm_created(mm: MmStruct) -> None:
    """An address space was made through the Python API: ``Machine.mm()`` or ``MmStruct.fork()``."""


@hookspec
def pykmm_report(result: RunResult) -> None:
    """A tape has been run; `result` is what ``Machine.run()`` is about to return."""
