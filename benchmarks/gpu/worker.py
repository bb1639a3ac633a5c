"""The process that runs units of one stage: `python -m gpu.worker DESCRIPTOR STAGE JOB`.

Reads names of units, a line each, and answers on the file descriptor with lines {"row": {...}}, and {"usable": true} at
the end of each unit. What is printed goes to the log. A unit that raises gives a row; one that leaves the device
unusable says so, and the runner starts another process for the units after it.
"""

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback

from gpu import stages
from gpu.job import Job, Skip
from gpu.results import clean


def die_with_parent() -> None:
    """Also when the parent is killed outright: nothing of the job stays behind on the device."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; Linux


def forbid_network() -> None:
    """The machine has none: a rehearsal that reaches for it fails here already."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and not (isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1")):
            raise OSError(f"the GPU machine has no network: {address}")
        connect(self, address)  # type: ignore[arg-type]

    socket.socket.connect = guarded  # type: ignore[method-assign]


def device_is_usable() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True


def main(descriptor: str, stage_name: str, job_text: str) -> None:
    die_with_parent()
    stage, job = stages.load(stage_name), Job.from_json(job_text)
    if job.rehearse:
        forbid_network()
    messages = os.fdopen(int(descriptor), "w")
    units = os.fdopen(os.dup(0))
    with open(os.devnull) as nothing:  # for the programs that a unit starts
        os.dup2(nothing.fileno(), 0)

    def tell(**message: object) -> None:
        messages.write(json.dumps(clean(message)) + "\n")
        messages.flush()

    while name := units.readline().strip():
        started = time.monotonic()
        try:
            for row in stage.run(job, name):
                tell(row={"unit": name, "status": "ok", **row})
        except Skip as reason:
            tell(row={"unit": name, "status": "skipped", "reason": str(reason)})
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error).strip() or 'no text'}".splitlines()[0][:300]
            tell(row={"unit": name, "status": "failed", "reason": reason})
        importlib.invalidate_caches()  # the build installs packages
        print(f"{stage_name} {name}: {time.monotonic() - started:.1f} s", flush=True)
        tell(usable=device_is_usable())


if __name__ == "__main__":
    main(*sys.argv[1:])
