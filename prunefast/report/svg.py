"""SVG elements as markup: attributes and texts are always escaped. Axis ticks."""

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

from prunefast.report.text import visible


def element(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """``element("text", "a < b", x=1, class_="axis")``: `_` in names becomes ``-``, a trailing one is dropped."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None:
            continue
        text = coordinate(value) if isinstance(value, float) else escape(visible(value))
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{text}"')
    if not children:
        parts.append("/>")
        return Markup("".join(parts))
    parts.append(">")
    parts.extend(child if isinstance(child, Markup) else escape(visible(child)) for child in children)
    parts.append(f"</{name}>")
    return Markup("".join(parts))


def coordinate(value: float) -> str:
    """At most two digits after the point: a hundredth of a pixel."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def picture(
    width: int, height: int, label: str, children: Iterable[Markup], class_: str = "", decorative: bool = False
) -> Markup:
    """The outer <svg>: scales to its container. `label` is what a screen reader says; decorative: it says nothing."""
    body = Markup("").join(children)
    if decorative:
        return element("svg", body, viewBox=f"0 0 {width} {height}", class_=class_ or None, aria_hidden="true")
    return element("svg", body, viewBox=f"0 0 {width} {height}", class_=class_ or None, role="img", aria_label=label)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that lie within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... within [low, high]; only powers of ten when that makes more than eight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(fine) <= 8:
        return fine
    return [10.0**p for p in powers if low <= 10.0**p <= high]


def tick_text(value: float) -> str:
    """``15000 -> 15k``, ``-0.25 -> −0.25``."""
    magnitude = abs(value)
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if magnitude >= size:
            return f"{value / size:.4g}{suffix}".replace("-", "−")
    return f"{0.0 if magnitude < 1e-12 else value:.4g}".replace("-", "−")
