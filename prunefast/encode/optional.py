"""Importing the packages of the extra `prunefast[encoders]`, with one line that says what is wrong."""

import importlib
from typing import Any

import torch

from prunefast.errors import MissingDependencyError


def import_optional(name: str, what: str) -> Any:
    """The module `name`, which `what` needs; `MissingDependencyError` where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:
            raise MissingDependencyError(
                f"{what}: needs {name}, which is not installed; run: pip install 'prunefast[encoders]'"
            ) from None
        raise broken(name, what, error) from None
    except Exception as error:  # a build for another torch fails in many ways, not only with ImportError
        raise broken(name, what, error) from None


def broken(name: str, what: str, error: Exception) -> MissingDependencyError:
    """The error for a package that is there and does not load, most often a torchvision made for another torch."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MissingDependencyError(
        f"{what}: {name} does not load beside torch {torch.__version__} ({reason}); install torch and torchvision "
        "from the same place: pip install 'prunefast[encoders]'"
    )
