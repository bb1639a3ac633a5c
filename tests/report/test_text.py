"""Names from outside, and numbers for people."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefast.report.text import number, seconds, share, short, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat/0001.jpg", "cat/0001.jpg"),
        ("été 漢字 🐈", "été 漢字 🐈"),
        ("photo\u202egpj.exe", "photo⟨U+202E⟩gpj.exe"),
        ("a\u2066b\u2069", "a⟨U+2066⟩b⟨U+2069⟩"),
        ("a\x00b\nc\x1b[31m", "a⟨U+0000⟩b⟨U+000A⟩c⟨U+001B⟩[31m"),
        ("name\udcff", "name\ufffd"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        (12, "12"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_visible_text_can_be_written_and_reorders_nothing(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert not any(c in shown for c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\x00\n\r")
    assert visible(shown) == shown


@given(st.text(), st.integers(8, 40))
def test_short_keeps_both_ends_within_the_limit(text, limit):
    shown = short(text, limit)
    assert len(shown) <= limit
    whole = visible(text)
    if len(whole) > limit:
        head, tail = shown.split("…")[0], shown[shown.rindex("…") + 1 :]
        assert whole.startswith(head)
        assert whole.endswith(tail)
    else:
        assert shown == whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12,345"),
        (12345.6, "12,346"),
        (0.0123456, "0.01235"),
        (-3.5, "−3.5"),
        (2.0, "2"),
        (0.0, "0"),
        (math.nan, "—"),
        (math.inf, "—"),
        (None, "—"),
        ("x", "—"),
        (True, "—"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (1, 3, "33.3 %"),
        (3, 10, "30 %"),
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (1, 10**6, "< 0.1 %"),
        (10**6 - 1, 10**6, "> 99.9 %"),
        (0, 0, "—"),
    ],
)
def test_share(part, whole, text):
    assert share(part, whole) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.14159, "3.1 s"), (59.7, "1 min 0 s"), (75, "1 min 15 s"), (7300, "2 h 1 min"), (None, "—")]
)
def test_seconds(value, text):
    assert seconds(value) == text
