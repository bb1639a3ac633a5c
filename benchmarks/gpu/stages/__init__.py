"""The stages, one file each: adding a stage is adding a file.

A stage is a module with

    ORDER   its place when all run, and in lists
    LIMIT   seconds, at most 540
    units(job) -> [Unit]            its parts, in order of worth; standard library only at import
    run(job, name) -> rows          of one unit, dicts as they come; "status" defaults to "ok"; may raise Skip(reason)
    table(rows) -> [[cell]]         optional: the short table at the end, first line the heading

`units` and `table` run in the runner, which has no torch; `run` in the worker.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(found, key=lambda name: load(name).ORDER)


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
