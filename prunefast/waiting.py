"""How OpenMP threads wait for work: asleep, not spinning.

GNU OpenMP lets idle threads spin for milliseconds by default. That is worth a few microseconds an operation on a
machine of one's own; on a shared one, or beside a second OpenMP library in the same process, the spinning threads take
the cores from those that work. Measured with two threads on two cores shared with other jobs, training steps of a small
UNet: 4 images per second spinning, 298 asleep.

The library reads OMP_WAIT_POLICY once, when it is loaded. A value the user has set is left alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "OMP_WAIT_POLICY"


def wait_asleep() -> None:
    """For this process from now on, in every OpenMP library that is not loaded yet: for programs, not for libraries."""
    os.environ.setdefault(_VARIABLE, "PASSIVE")


@contextmanager
def waiting_asleep() -> Iterator[None]:
    """For the OpenMP library that is loaded inside the block; the environment is as before afterwards."""
    given = os.environ.get(_VARIABLE)
    wait_asleep()
    try:
        yield
    finally:
        if given is None:
            del os.environ[_VARIABLE]
