"""Errors a user can act on: one line that names the argument or file, and the fix."""


class PrunefastError(Exception):
    """Base of every error that prunefast raises on purpose. The command line prints it without a traceback."""

    exit_status = 2


class InputError(PrunefastError, ValueError):
    """An argument or a file whose value cannot be used."""


class InputTypeError(PrunefastError, TypeError):
    """An argument of the wrong type or dtype."""


class MissingDependencyError(PrunefastError, ImportError):
    """An optional package is not installed or does not load here."""


class MachineError(PrunefastError, OSError):
    """The machine failed, not the input: a full disk, a device that went away."""

    exit_status = 1
