"""Text from outside (file names, class names, manifests) made safe to show, and numbers made short.

Escaping for HTML is jinja2's and markupsafe's work. What they let through and a page must not: characters that have no
glyph or reorder the line (a right-to-left override turns "gpj.exe" round), and broken surrogates of undecodable names.
"""

import math
import unicodedata
from typing import Any

SHORT_NAME = 60  # characters of a name in a tooltip or an alternative text


def visible(value: Any) -> str:
    """`value` as text in which every control, format and broken character is spelt out, such as ``⟨U+202E⟩``."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(c) for c in text)


def _visible_character(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":  # half of a pair, or an undecodable byte of a file name
        return "\ufffd"
    if category in ("Cc", "Cf", "Zl", "Zp", "Cn"):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def short(value: Any, limit: int = SHORT_NAME) -> str:
    """`visible`, with the middle left out where it is longer than `limit` characters."""
    text = visible(value)
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return f"{text[:head]}…{text[head + 1 - limit :]}"


def number(value: float | int | None, digits: int = 4) -> str:
    """``12345 -> 12,345``, ``0.0123456 -> 0.01235``; an em dash for what is not known or not finite."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "—"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def share(part: int, whole: int) -> str:
    """``share(1, 3) -> 33.3 %``; only everything reads 100 %, and only nothing reads 0 %."""
    if whole <= 0:
        return "—"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %".replace(".0 %", " %")


def seconds(value: float | None) -> str:
    """``75 -> 1 min 15 s``."""
    if value is None or not math.isfinite(value) or value < 0:
        return "—"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
