"""The result: a weight for each class, how it came about, and its file class_weights.json."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import prunefast
from prunefast.diffusion.loss import distribution
from prunefast.errors import InputError
from prunefast.files import read_json, write_json
from prunefast.score.parquet_file import to_json

FORMAT_VERSION = 1
GROUPS = ("classes", "clusters", "own")
_TRACES = ("weights", "average", "excess")


@dataclass(frozen=True, eq=False)
class ClassWeights:
    """average   float64 [C], summing to 1: what each class should count for. `TrainConfig(class_weights=)`,
                 `CoresetLoader(class_weights=)` and `DenoisingLoss(class_weights=)` take the object
    classes      C names
    groups       what a "class" is here: "classes" of the data, "clusters" of the coreset, or groups of your "own"
    history      "images" int64 [S]: proxy images seen; "weights", "average", "excess" float64 [S, C] at that point
                 (excess NaN: not seen yet)
    manifest     JSON-able: options, reference, data, versions
    """

    average: np.ndarray
    classes: list[str]
    groups: str = "classes"
    history: dict[str, np.ndarray] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        average = distribution("average", self.average)
        if len(average) != len(self.classes):
            raise InputError(f"average: {len(average)} weights for {len(self.classes)} classes")
        if self.groups not in GROUPS:
            raise InputError(f"groups: must be one of {', '.join(GROUPS)}, not {self.groups!r}")
        average.flags.writeable = False
        object.__setattr__(self, "average", average)
        object.__setattr__(self, "history", _history(self.history, len(average)))

    def __len__(self) -> int:
        return len(self.average)

    def __repr__(self) -> str:
        return f"ClassWeights({len(self)} {self.groups}, {self.average.min():.4g} to {self.average.max():.4g})"

    def summary(self) -> str:
        """One line a class, heaviest first: weight, and how many times the uniform one it is."""
        order = np.argsort(-self.average, kind="stable")
        width = max(len(name) for name in self.classes)
        return "\n".join(
            f"{self.classes[c]:{width}}  {self.average[c]:.4f}  {self.average[c] * len(self):.2f} x uniform"
            for c in order.tolist()
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write class_weights.json, atomically; `load` gives equal numbers back."""
        history = {name: _nested(values) for name, values in self.history.items()}
        content = {
            "format_version": FORMAT_VERSION,
            "average": self.average.tolist(),
            "classes": list(self.classes),
            "groups": self.groups,
            "history": history,
            "manifest": to_json(self.manifest | {"package_version": prunefast.__version__}),
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ClassWeights":
        """InputError naming the file where it is missing, broken or of another format."""
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{path}: is no class weights of this version; run prunefast reweight again")
        try:
            return cls(
                content["average"],
                [str(name) for name in content["classes"]],
                content["groups"],
                dict(content["history"]),
                dict(content["manifest"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"{path}: {reason}; delete it and run prunefast reweight again") from None


def _nested(values: np.ndarray) -> Any:
    """Lists, with None for NaN."""
    return [_nested(row) if isinstance(row, np.ndarray) else _plain(row) for row in values]


def _history(history: dict[str, Any], classes: int) -> dict[str, np.ndarray]:
    if not history:
        return {}
    images = np.array(history["images"], dtype=np.int64)
    result: dict[str, np.ndarray] = {"images": images}
    for name in _TRACES:
        values = np.array(history[name], dtype=np.float64).reshape(-1, classes)  # None becomes NaN
        if len(values) != len(images):
            raise InputError(f"history: {len(values)} rows of {name} for {len(images)} points")
        result[name] = values
    return result


def _plain(value: np.generic) -> Any:
    return None if np.isnan(value) else value.item()  # type: ignore[call-overload]
