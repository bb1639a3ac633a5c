"""benchmarks/gpu/run.sh STAGE... : builds, checks, measures and trains on a GPU machine; results go to --out.

With --rehearse everything runs at tiny sizes on a CPU. docs/gpu.md explains stages, files and options.
"""

import argparse
import sys
from pathlib import Path

from gpu import machine, results, runner, stages
from gpu.job import Job, default_work, say
from gpu.parts import join_parts

PREPARED = "gpu-prepared.safetensors"  # looked for beside the data where --prepared is not given


def parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<12}{(stages.load(name).__doc__ or '').splitlines()[0]}" for name in stages.names()]
    it = argparse.ArgumentParser(
        prog="benchmarks/gpu/run.sh",
        description=__doc__,
        epilog="stages:\n" + "\n".join(lines) + "\n  all         all of them, in this order",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    it.add_argument("stages", nargs="+", metavar="STAGE", help="after quality also arms or groups of arms.toml")
    it.add_argument("--minutes", type=float, metavar="N", help="as many stages as fit")
    it.add_argument("--wheels", metavar="DIR", help="wheels to install first; large ones in parts (NAME.whl.part-00)")
    it.add_argument("--data", metavar="FILE", help="archive of images with splits train and test: CIFAR-10")
    it.add_argument("--prepared", metavar="FILE", help=f"made by prepare.py; else {PREPARED} beside the data")
    it.add_argument("--out", metavar="DIR", default="gpu-out", help="what comes back (gpu-out)")
    it.add_argument("--work", metavar="DIR", help="scratch that later calls find again (a folder in the system's)")
    it.add_argument("--rehearse", action="store_true", help="on the CPU, tiny sizes")
    return it


def split_stages(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """(stages, arms): words after quality that name no stage are its arms."""
    known = stages.names()
    names: list[str] = []
    arms: list[str] = []
    for word in words:
        if word == "all":
            names += known
        elif word in known:
            names.append(word)
        elif names[-1:] == ["quality"]:
            arms.append(word)
        else:
            raise SystemExit(f"stage {word!r} does not exist; there are: {', '.join(known)}, all")
    return list(dict.fromkeys(names)), tuple(arms)


def existing(flag: str, path: str | None) -> str | None:
    if path is not None and not Path(path).exists():
        raise SystemExit(f"{flag} {path}: does not exist")
    return None if path is None else str(Path(path).resolve())


def gpu_is_missing() -> str | None:
    """Why the job cannot run for real here."""
    if machine.answer("nvidia-smi", "-L") is None:
        return "nvidia-smi finds no GPU here; --rehearse runs everything at tiny sizes on the CPU"
    return None


def main() -> int:
    given = parser().parse_args()
    names, arms = split_stages(given.stages)
    if given.minutes is not None and not given.minutes > 0:
        raise SystemExit(f"--minutes {given.minutes:g}: it must be above 0")
    if not given.rehearse and (reason := gpu_is_missing()):
        raise SystemExit(reason)
    out = Path(given.out).resolve()
    work = Path(given.work).resolve() if given.work else default_work(given.rehearse)
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    data, prepared = existing("--data", given.data), existing("--prepared", given.prepared)
    if prepared is None and data is not None and (beside := Path(data).parent / PREPARED).exists():
        prepared = str(beside)
    wheels = existing("--wheels", given.wheels)
    if wheels is not None:
        wheels = str(join_parts(Path(wheels), work / "wheels"))
    job = Job(str(out), str(work), given.rehearse, wheels=wheels, data=data, prepared=prepared, arms=arms)
    if "quality" in names:
        try:
            stages.load("quality").units(job)
        except ValueError as error:
            raise SystemExit(str(error)) from None
    if "build" not in names and not (job.site / "prunefast").exists() and not importable():
        say("prunefast is not installed here: build runs first")
        names.insert(0, "build")
    written = results.Results(out, work, machine.describe(), given.rehearse)
    fine = runner.run(names, job, written, given.minutes)
    found = results.problems(out)
    for problem in found:
        say(f"{out}: {problem}")
    say(f"{written.path}: {'fine' if fine and not found else 'see the rows that are bad or failed'}")
    return 0 if fine and not found else 1


def importable() -> bool:
    import importlib.util

    return importlib.util.find_spec("prunefast") is not None


if __name__ == "__main__":
    sys.exit(main())
