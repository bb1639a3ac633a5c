"""The process that runs units of one stage: `python -m gpu.worker DESCRIPTOR STAGE JOB UNIT...`.

Messages to that file descriptor, a line each: {"begin": UNIT}, {"row": {...}}, {"end": UNIT}. What is printed goes to the
log. A unit that raises gives a row; one that leaves the device unusable ends the process, and the runner starts another
for the units after it.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback

from gpu import stages
from gpu.job import Job, Skip
from gpu.results import clean

BROKEN_DEVICE = 70  # exit status


def die_with_parent() -> None:
    """Also when the parent is killed outright: nothing of the job stays behind on the device."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; Linux
    if os.getppid() == 1:
        sys.exit(1)


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


def main(arguments: list[str]) -> int:
    die_with_parent()
    descriptor, stage_name, job_text, *units = arguments
    stage, job = stages.load(stage_name), Job.from_json(job_text)
    messages = os.fdopen(int(descriptor), "w", buffering=1)

    def tell(**message: object) -> None:
        messages.write(json.dumps(clean(message)) + "\n")
        messages.flush()

    for name in units:
        tell(begin=name)
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
            if not device_is_usable():
                tell(end=name)
                return BROKEN_DEVICE
        print(f"{stage_name} {name}: {time.monotonic() - started:.1f} s", flush=True)
        tell(end=name)
        importlib.invalidate_caches()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
