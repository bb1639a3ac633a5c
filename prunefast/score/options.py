"""Options of methods: a frozen dataclass per method, made from keyword arguments with one clear error."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from prunefast.checks import check_seed
from prunefast.errors import InputError

__all__ = ["check_seed", "make_options"]

T = TypeVar("T")


def make_options(kind: type[T], method: str, given: Mapping[str, Any]) -> T:
    """An instance of the dataclass `kind`; an unknown name is an error that lists the known ones."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            has = "its options are " + ", ".join(known) if known else "it has no options"
            raise InputError(f"{name}: method {method!r} has no such option; {has}")
    return kind(**given)
