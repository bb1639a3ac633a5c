"""Options of methods: a frozen dataclass per method, made from keyword arguments with one clear error."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from prunefast.errors import InputError

T = TypeVar("T")


def make_options(kind: type[T], method: str, given: Mapping[str, Any]) -> T:
    """An instance of the dataclass `kind`; an unknown name is an error that lists the known ones."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            has = "its options are " + ", ".join(known) if known else "it has no options"
            raise InputError(f"{name}: method {method!r} has no such option; {has}")
    return kind(**given)


def check_seed(seed: Any) -> int:
    """A seed is a whole number from 0 to 2^64-1, the range of a Philox key."""
    try:
        number = int(seed)
    except (TypeError, ValueError):
        raise InputError(f"seed: must be a whole number, not {seed!r}") from None
    if number != seed or isinstance(seed, bool) or not 0 <= number < 2**64:
        raise InputError(f"seed: must be a whole number from 0 to 2^64-1, not {seed!r}")
    return number
