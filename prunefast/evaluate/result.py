"""`Evaluation`: numbers together with the protocol they were made under, as an object, a text and a file."""

import math
import os
from dataclasses import dataclass
from typing import Any

from prunefast.errors import InputError
from prunefast.files import read_json, write_json

# name -> (what people read, which way is better, digits)
METRIC_TEXTS: dict[str, tuple[str, str, str]] = {
    "frechet_distance": ("Frechet distance", "lower is better", ".4g"),
    "kid": ("KID", "lower is better", ".4g"),
    "precision": ("precision", "higher is better", ".3f"),
    "recall": ("recall", "higher is better", ".3f"),
    "vendi": ("Vendi score", "effective number of different images", ".4g"),
    "inception_frechet_distance": ("FID (Inception)", "lower is better", ".4g"),
    "inception_kid": ("KID (Inception)", "lower is better", ".4g"),
}


@dataclass(frozen=True)
class Evaluation:
    """metrics: name -> number or dict; protocol: JSON-able, everything needed to repeat or compare the numbers."""

    metrics: dict[str, Any]
    protocol: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        return list(self.protocol.get("warnings", []))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write metrics.json, atomically."""
        write_json(path, {"protocol": self.protocol, "metrics": self.metrics})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """Read metrics.json; InputError naming the file where it is missing or is something else."""
        value = read_json(path)
        if not (isinstance(value, dict) and all(isinstance(value.get(key), dict) for key in ("metrics", "protocol"))):
            raise InputError(f"{path}: is not a metrics.json; delete it and evaluate again")
        return cls(value["metrics"], value["protocol"])

    def __str__(self) -> str:
        lines = [f"{text:<22}{value:<24}{note}".rstrip() for text, value, note in metric_rows(self.metrics)]
        lines.append("protocol: " + "; ".join(f"{name} {value}" for name, value in protocol_rows(self.protocol)))
        lines.extend(f"warning: {warning}" for warning in self.warnings)
        return "\n".join(lines)


def metric_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, what it means) per metric, for people."""
    rows = []
    for name, (text, direction, digits) in METRIC_TEXTS.items():
        if isinstance(metrics.get(name), int | float):
            value = format(metrics[name], digits)
            if isinstance(metrics.get(f"{name}_std"), int | float):
                value = _with_spread(metrics[name], metrics[f"{name}_std"])
                direction += "; ± is the spread over blocks"
            if isinstance(metrics.get(f"{name}_reference"), int | float):
                direction += f"; as many of the reference: {metrics[f'{name}_reference']:{digits}}"
            rows.append((text, value, direction))
    memory = metrics.get("memorisation")
    if isinstance(memory, dict):
        share, expected = memory.get("copied_share"), memory.get("copied_share_expected")
        if share is not None and expected is not None:
            rows.append(("near-copies", f"{share:.1%}", f"about {expected:.0%} expected without memorisation"))
        if memory.get("ratio_median") is not None:
            note = "distance to trained / to held-out images; well below 1 hints at copying"
            rows.append(("neighbour ratio", f"{memory['ratio_median']:.3f}", note))
        if memory.get("novelty") is not None:
            note = "farther from training images than half of those are from each other; about 50% is natural"
            rows.append(("novelty", f"{memory['novelty']:.1%}", note))
    gap = metrics.get("denoising_gap")
    comparable = isinstance(gap, dict) and gap.get("comparable", True)
    if isinstance(gap, dict):
        note = f"held-out loss {gap['held_out']:.4g} - training loss {gap['training']:.4g}; "
        note += "0 without overfitting" if comparable else "no sign: what a selection left out may be harder by itself"
        rows.append(("denoising gap", _with_spread(gap["gap"], gap["standard_error"]), note))
    found = metrics.get("overfitting")
    if isinstance(found, dict):
        looked_at = " and ".join(["near-copies"] * ("memorisation" in metrics) + ["denoising gap"] * comparable)
        rows.append(("overfitting", "suspected" if found.get("suspected") else "no sign", f"by {looked_at}"))
    counts = metrics.get("class_counts")
    if isinstance(counts, dict) and counts:
        sizes = [count for count in counts.values() if isinstance(count, int)]
        if sizes:
            rows.append(("samples per class", _range(min(sizes), max(sizes)), f"{len(sizes):,} classes"))
    return rows


def protocol_rows(protocol: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) per line of the protocol, for people; what is not known is left out."""
    rows: list[tuple[str, str]] = []

    def add(name: str, value: Any) -> None:
        if value is not None and value != "":
            rows.append((name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)))

    add("samples", protocol.get("sample_count"))
    reference = protocol.get("reference")
    if isinstance(reference, dict):
        split = f", {reference['split']} split" if reference.get("split") else ""
        fingerprint = f", fingerprint {str(reference.get('fingerprint', ''))[:12]}"
        add("reference", f"{reference.get('name')} ({reference.get('count', 0):,} images{split}{fingerprint})")
    encoder = protocol.get("encoder")
    if isinstance(encoder, dict):
        digest = f", digest {str(encoder['digest'])[:12]}" if encoder.get("digest") else ""
        add("encoder", f"{encoder.get('name')} ({encoder.get('dim')} features{digest})")
    add("image size", protocol.get("image_size"))
    add("resized", protocol.get("resized"))
    sampling = protocol.get("sampling")
    if isinstance(sampling, dict):
        add("sampling", _sampling_text(sampling))
        add("checkpoint", str(sampling["checkpoint"])[:12] if sampling.get("checkpoint") else None)
    add("seed", protocol.get("seed"))
    parts = {"kid": "KID", "precision_recall": "precision/recall", "vendi": "Vendi", "denoising_gap": "denoising gap"}
    for key, text in (*parts.items(), ("inception", "Inception")):
        part = protocol.get(key)
        if isinstance(part, dict):
            add(text, ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in part.items()))
    return rows


def _short(value: Any) -> str:
    """A data set by its name, a digest by its beginning."""
    if isinstance(value, dict):
        return str(value.get("name"))
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _range(low: int, high: int) -> str:
    return f"{low:,} each" if low == high else f"{low:,} to {high:,}"


def _sampling_text(sampling: dict[str, Any]) -> str:
    """``ddim, 50 steps, guidance 1.5, EMA weights, seed 0``"""
    parts = [str(sampling["sampler"])] if sampling.get("sampler") else []
    if sampling.get("steps") is not None:
        parts.append(f"{sampling['steps']} steps")
    if sampling.get("guidance") is not None:
        parts.append(f"guidance {sampling['guidance']:g}")
    if sampling.get("ema") is not None:
        parts.append("EMA weights" if sampling["ema"] else "raw weights, no EMA")
    if sampling.get("seed") is not None:
        parts.append(f"seed {sampling['seed']}")
    return ", ".join(parts)


def _with_spread(value: float, spread: float) -> str:
    """Both with as many decimals as two digits of the spread have: ``-0.003 ± 0.020``."""
    if not (math.isfinite(spread) and spread > 0):
        return f"{value:.4g} ± {spread:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value:.{decimals}f} ± {spread:.{decimals}f}"
