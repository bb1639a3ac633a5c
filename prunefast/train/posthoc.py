"""Power-function averages of any width after training, from snapshots of two (Karras et al. 2024, EDM2, section 3.2).

    OUT/train/averages/000012800.safetensors     the power-function averages after 12,800 images, AVERAGE/NAME

An average with exponent g after t images weighs the weights of image s by p(s) = (g + 1) s^g / t^(g + 1), s <= t. A sum
of snapshots with factors x weighs them by sum x_i p_i(s). The factors that come nearest to a wanted p, in the mean
square over s, solve A x = b with A_ij = <p_i, p_j> and b_i = <p_i, p>; here under the condition that they sum to 1, so
that weights which did not move stay what they are. `profile_error` is what is left, in the norm of p.

The profiles are exact for what training computes: weights change at steps, and the factor of an update is the integral
of p over the images since the update before.
"""

import contextlib
import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunefast.errors import InputError, InputTypeError
from prunefast.files import atomic_path, remove_leftovers
from prunefast.train.ema import WIDEST, Ema, HalfLife, PowerFunction, gamma_of
from prunefast.train.state import AVERAGES_FILE, find_checkpoint, load_tensors, save_tensors, write_checkpoint

FOLDER = "averages"

# A snapshot is taken whenever the images have grown by this factor: averages widen in proportion to the images, and so
# may the distance of snapshots. With widths 0.05 and 0.10 the profile of any width from 0.05 to 0.12 comes out within
# 0.8 %, 0.15 within 1.5 %, 0.2 within 2.6 %; with a factor of 1.2 the errors are three times those.
GROWTH = 1.1
# So many reach back to a tenth of the images; what lies before has no weight in averages of widths below 0.2.
KEEP = 24
# Above, the profile is told to be another one.
POOR_PROFILE = 0.05


class Snapshots:
    """The files of a run, written while it trains. When follows from the image counts alone, so that a run which was
    stopped and continued has the same.

    keep: the newest so many stay. 0: none is taken. whole: of sharded averages, what gives rank 0 all parts.
    """

    def __init__(self, folder: Path, ema: Ema, keep: int = KEEP, whole: Callable[..., dict[str, Tensor]] | None = None):
        self.folder, self.ema, self.keep, self.whole = folder / FOLDER, ema, keep, whole
        remove_leftovers(self.folder)
        self._prefixes = tuple(f"{a.name}/" for a in ema.averages if isinstance(a, PowerFunction))

    def take(self, images: int) -> bool:
        """After the step that ended at `images`: write a snapshot if one is due. Whether it was."""
        if not (self._prefixes and self.keep and self._due(images)):
            return False
        power = {k: t for k, t in self.ema.more_tensors().items() if k.startswith(self._prefixes)}
        if self.whole is not None and not (power := self.whole(power)):
            return True  # rank 0 writes
        path = self.folder / f"{images:09d}.safetensors"
        with atomic_path(path) as temporary:
            save_tensors(power, temporary, path)
        for old in list_snapshots(self.folder, images)[: -self.keep]:
            old.unlink(missing_ok=True)
        return True

    def _due(self, images: int) -> bool:
        """Whether the last update of the averages, at `images`, passed a power of GROWTH."""
        begin = images - self.ema.last_count
        if self.ema.pending or begin < self.ema.last_count / (GROWTH - 1.0):  # finer than the updates are: no use
            return False
        return math.floor(math.log(images, GROWTH)) > math.floor(math.log(begin, GROWTH))


def list_snapshots(folder: Path, images: int) -> list[Path]:
    """Those taken after at most so many images, oldest first."""
    numbered = ((int(p.stem), p) for p in folder.glob("*.safetensors") if p.stem.isascii() and p.stem.isdigit())
    return [path for number, path in sorted(numbered) if number <= images]


# --- the least-squares system ---


def inner_products(t1: ArrayLike, g1: ArrayLike, t2: ArrayLike, g2: ArrayLike) -> NDArray[np.float64]:
    """float64: integral of p1 p2 over the images, for exponents g and ends t that broadcast."""
    t1, g1, t2, g2 = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (t1, g1, t2, g2)))
    later, share = np.maximum(t1, t2), np.minimum(t1, t2) / np.maximum(t1, t2)
    return (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * share ** np.where(t1 <= t2, g2, g1) / later


def solve_factors(
    images: Sequence[float], sigma_rel: Sequence[float], wanted: float, end: float
) -> tuple[NDArray[np.float64], float]:
    """Factors float64 [n] of n snapshots, taken after `images` of averages of `sigma_rel`, for the average of width
    `wanted` after `end` images; and the error of its profile."""
    t, g, goal = np.array(images, np.float64), np.array([gamma_of(s) for s in sigma_rel]), gamma_of(wanted)
    a = inner_products(t[:, None], g[:, None], t, g)
    b = inner_products(t, g, end, goal)
    norm = float(inner_products(end, goal, end, goal))
    # in units of each profile's norm, with the condition as one more row and column (a Lagrange multiplier)
    unit = 1.0 / np.sqrt(np.diag(a))
    system = np.zeros((len(t) + 1, len(t) + 1))
    system[:-1, :-1] = a * unit * unit[:, None]
    system[-1, :-1] = system[:-1, -1] = unit / unit.max()
    solved = np.linalg.lstsq(system, np.append(b * unit / math.sqrt(norm), 1 / (unit.max() * math.sqrt(norm))), 1e-13)
    x = solved[0][:-1] * unit * math.sqrt(norm)
    squared = (norm - 2 * b @ x + x @ a @ x) / norm
    return x, math.sqrt(max(squared, 0.0))


# --- a checkpoint of another average ---


@dataclasses.dataclass(frozen=True)
class ChosenAverage:
    """What `choose_ema` wrote. profile_error: 0 for an average that the run kept itself."""

    checkpoint: Path
    name: str  # "sigma-rel-0.12"
    images: int
    snapshots: int
    profile_error: float
    repeated: bool = False  # it was there already

    def __str__(self) -> str:
        how = (
            f"of {self.snapshots} averages, profile error {self.profile_error:.2%}"
            if self.snapshots > 1
            else "as it was kept in training"
        )
        return f"{self.checkpoint}: {self.name} after {self.images:,} images, {how}"


def choose_ema(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sigma_rel: float | None = None,
    half_life: float | None = None,
) -> ChosenAverage:
    """Write a checkpoint whose average is another one of the same run: to sample, evaluate, export or go on from.

        pf.choose_ema("run", "run-0.12", sigma_rel=0.12)
        pf.sample("run-0.12", 16)

    sigma_rel   the power-function average of this relative width, kept or put together after the fact: the run was
                trained with ``ema_sigma_rel``, and its snapshots lie in OUT/train/averages
    half_life   the exponential average of this half-life, one of ``ema_half_life_images``

    Writes OUT/train/checkpoint-*, of weights and average alone: training does not go on in OUT (``init_from`` takes
    it). Warns where the profile of that width cannot be put together well from the snapshots.

    Raises InputError for a run without such averages, a width outside (0, 0.288], or an OUT that holds something else.
    """
    if (sigma_rel is None) == (half_life is None):
        raise InputError("sigma_rel, half_life: give one of them")
    value = sigma_rel if half_life is None else half_life
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{'sigma_rel' if half_life is None else 'half_life'} is {value!r}; give a number")
    if sigma_rel is not None and not 0 < sigma_rel <= WIDEST:
        raise InputError(f"sigma_rel is {sigma_rel:g}; it must be above 0 and at most {WIDEST:.3f}, a uniform average")
    path, state = find_checkpoint(checkpoint)
    kept = state.get("ema", {"averages": [], "pending": 0})
    end = state["images"] - kept["pending"]
    name = PowerFunction(sigma_rel).name if sigma_rel is not None else HalfLife(float(half_life or 0)).name
    target = Path(out) / "train" / path.name
    source = {"average": name, "of": state["digest"]}
    if target.parent.exists():
        done = find_checkpoint(target.parent)
        if done[0].name != path.name or done[1]["recipe"].get("chosen_ema") != source:
            raise InputError(f"{target.parent}: holds another model; choose another folder")
        profile = done[1]["ema"]
        return ChosenAverage(target, name, end, profile["snapshots"], profile["profile_error"], repeated=True)
    parts, error = _parts(path, kept["averages"], end, name, sigma_rel)
    if error > POOR_PROFILE:
        warnings.warn(
            f"{name}: its profile is put together with an error of {error:.0%}; widths nearer to those that were kept "
            "come out better",
            stacklevel=2,
        )
    tensors = {
        "model.safetensors": load_tensors(path / "model.safetensors"),
        "ema.safetensors": _sum(path / "ema.safetensors", parts),
        "optimizer.safetensors": {},
    }
    of_run = {k: v for k, v in state.items() if k not in ("format", "images", "versions", "files", "digest")}
    document = of_run | {
        "recipe": {**state["recipe"], "chosen_ema": source},
        "ema": {"averages": [name], "pending": kept["pending"], "snapshots": len(parts), "profile_error": error},
    }
    write_checkpoint(target, state["images"], document, tensors)
    return ChosenAverage(target, name, end, len(parts), error)


_Part = tuple[float, Path, str]  # factor, file, prefix of names


def _parts(path: Path, kept: Sequence[str], end: int, name: str, sigma_rel: float | None) -> tuple[list[_Part], float]:
    """What an average is a sum of, and the error of its profile."""
    if name in kept:
        if kept.index(name) == 0:
            return [(1.0, path / "ema.safetensors", "")], 0.0
        return [(1.0, path / AVERAGES_FILE, f"{name}/")], 0.0
    prefix = "sigma-rel-"
    widths = {other: float(other.removeprefix(prefix)) for other in kept if other.startswith(prefix)}
    if sigma_rel is None:
        raise InputError(f"{path}: keeps no average {name}; it has {', '.join(kept) or 'one alone'}")
    if not widths:
        raise InputError(
            f"{path}: was trained without power-function averages; train with ema_sigma_rel = [0.05, 0.1] to have any "
            "width afterwards"
        )
    files = [(int(file.stem), file) for file in list_snapshots(path.parent / FOLDER, end - 1)]
    files.append((end, path / AVERAGES_FILE))
    found = [(images, file, other) for images, file in files for other in widths]
    factors, error = solve_factors([images for images, _, _ in found], [widths[o] for _, _, o in found], sigma_rel, end)
    return [(float(x), file, f"{o}/") for x, (_, file, o) in zip(factors, found, strict=True)], error


def _sum(names_from: Path, parts: Sequence[_Part]) -> dict[str, Tensor]:
    """float32: sum of factor x tensor in float64, one name at a time; what has no average is as it was last."""
    result = load_tensors(names_from)
    with contextlib.ExitStack() as stack:
        try:
            opened = {file: stack.enter_context(safe_open(file, "pt")) for _, file, _ in parts}
            for name, tensor in result.items():
                if tensor.is_floating_point():
                    terms = (opened[file].get_tensor(prefix + name).double() * x for x, file, prefix in parts)
                    result[name] = sum(terms, torch.zeros((), dtype=torch.float64)).to(tensor.dtype)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{parts[0][1].parent}: a snapshot cannot be read ({error}); delete that file, the others may do"
            ) from None
    return result
