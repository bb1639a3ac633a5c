"""Charts say what the numbers say: bar heights, axis ends, escaping."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefast.report import charts
from prunefast.report.svg import coordinate, element, log_ticks, tick_text, ticks


def parse(markup):
    """The chart as XML (it must be well formed), within one root."""
    return ET.fromstring(f"<root>{markup}</root>")


def svgs(markup):
    return parse(markup).findall(".//svg")


def test_element_escapes_attributes_and_text():
    made = element("text", "<b>&\"'", class_='a"b', data_x="\u202e")
    root = ET.fromstring(str(made))
    assert root.text == "<b>&\"'"
    assert root.attrib == {"class": 'a"b', "data-x": "⟨U+202E⟩"}
    assert "<b>" not in str(made)


@pytest.mark.parametrize(("value", "text"), [(1.0, "1"), (1.239, "1.24"), (-0.001, "0"), (100.0, "100"), (0.5, "0.5")])
def test_coordinate(value, text):
    assert coordinate(value) == text


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_round_even_and_inside(low, width, count):
    high = low + width
    found = ticks(low, high, count)
    step = width / count
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in found)
    assert len(found) <= count + 1
    if len(found) > 1:
        gaps = np.diff(found)
        assert np.allclose(gaps, gaps[0])
        assert step * 0.999 <= gaps[0] <= step * 10.001
        mantissa = float(f"{gaps[0]:.6e}".split("e")[0])
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3


def test_log_ticks():
    assert log_ticks(0.04, 1.2) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])
    assert log_ticks(1e-5, 1e3) == pytest.approx([10.0**p for p in range(-5, 4)])


@pytest.mark.parametrize(
    ("value", "text"), [(15000, "15k"), (-0.25, "−0.25"), (2.5e6, "2.5M"), (0.0, "0"), (1e-15, "0")]
)
def test_tick_text(value, text):
    assert tick_text(value) == text


def test_histogram_counts_everything_once():
    rng = np.random.default_rng(0)
    values, keep = rng.normal(size=5000), rng.random(5000) < 0.3
    values[:3] = [-80, 90, 95]  # outliers end up in the end bars, and are said to
    histogram = charts.make_histogram(values, keep)
    assert histogram.kept.sum() == keep.sum()
    assert histogram.total.sum() == 5000
    assert histogram.below >= 1
    assert histogram.above >= 2
    assert histogram.edges[-1] < 10
    inner = (values >= histogram.edges[1]) & (values < histogram.edges[-2])
    expected = np.histogram(values[inner & keep], histogram.edges)[0]
    np.testing.assert_array_equal(histogram.kept[1:-1], expected[1:-1])


def test_axis_ends_where_the_data_end_without_outliers():
    values = np.linspace(-3, 7, 1000)
    assert charts.robust_limits(values) == (-3, 7)
    low, high = charts.robust_limits(np.full(10, 4.0))
    assert low < 4 < high


def test_bars_are_as_high_as_their_counts():
    values = np.repeat([0.5, 1.5, 2.5], [10, 40, 20])
    keep = np.concatenate([np.zeros(10, bool), np.arange(40) < 30, np.ones(20, bool)])
    histogram = charts.make_histogram(values, keep, bins=3, limits=(0, 3))
    wide, narrow = svgs(charts.histogram_chart(histogram, [1.0], "score", "label"))
    for svg in (wide, narrow):
        bars = [(r.get("class"), float(r.get("height"))) for r in svg.findall(".//rect")]
        unit = bars[-1][1] / 20
        assert [(name, round(height / unit)) for name, height in bars] == [
            ("dropped", 10),
            ("kept", 30),
            ("dropped", 10),
            ("kept", 20),
        ]
        assert unit * 42 < float(svg.get("viewBox").split()[3])
        titles = [t.text for t in svg.findall(".//title")]
        assert titles[1] == "score 1 to 2: 30 of 40 images kept"
        assert svg.get("aria-label") == "label"
        texts = [t.text for t in svg.findall(".//text")]
        assert {"score", "images", "cut 1"} <= set(texts)
        cut = next(line for line in svg.findall(".//line") if line.get("class") == "cut")
        second_bar = next(r for r in svg.findall(".//rect") if r.get("class") == "kept")
        assert float(cut.get("x1")) == pytest.approx(float(second_bar.get("x")), abs=1)


def test_a_chart_fits_its_box_and_every_text_its_chart():
    values = np.random.default_rng(0).normal(size=300) * 1e5
    charts_made = [
        charts.histogram_chart(charts.make_histogram(values, values > 0), [0.0], "score", "l"),
        charts.line_chart([charts.Line("a", np.arange(1.0, 300), np.geomspace(1, 1e-3, 299))], "images", "loss", "l"),
        charts.column_chart(np.array([9, 4, 1]), np.array([3, 4, 0]), "cluster", "l"),
    ]
    for made in charts_made:
        for svg in svgs(made):
            width, height = (float(v) for v in svg.get("viewBox").split()[2:])
            for text in svg.findall(".//text"):
                size = 7.2 * len(text.text)  # of 13-pixel letters, generously
                if text.get("transform"):
                    assert float(text.get("y")) - size / 2 >= 0
                    assert float(text.get("y")) + size / 2 <= height
                    continue
                start = float(text.get("x")) - size * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
                assert start >= -8
                assert start + size <= width + 8
                assert 0 < float(text.get("y")) <= height


def test_line_chart_keeps_spikes_and_says_when_it_is_logarithmic():
    x = np.arange(1.0, 50_001)
    y = np.full(50_000, 0.05)
    y[12_345] = 0.9
    made = charts.line_chart([charts.Line("run", x, y)], "images seen", "training loss", "l")
    wide = svgs(made)[0]
    assert "training loss, logarithmic" in [t.text for t in wide.findall(".//text")]
    measured = next(p for p in wide.findall(".//path") if "measured" in p.get("class"))
    heights = [float(pair.split()[1]) for pair in re.findall(r"[ML]([\d.]+ [\d.]+)", measured.get("d"))]
    assert len(heights) < 6000  # thinned
    assert min(heights) < 40 < max(heights)  # the one spike reaches the top of the plot
    flat = charts.line_chart([charts.Line("run", x[:50], 1 + x[:50] / 100)], "images seen", "training loss", "l")
    assert "training loss" in [t.text for t in svgs(flat)[0].findall(".//text")]


def test_running_mean():
    np.testing.assert_allclose(charts.running_mean(np.full(100, 3.0)), 3.0)
    y = np.arange(200.0)
    np.testing.assert_allclose(charts.running_mean(y)[20:190], y[20:190])  # symmetric: no lag on a slope
    assert charts.running_mean(np.array([5.0])).tolist() == [5.0]


def test_thin_keeps_ends_and_extremes():
    rng = np.random.default_rng(0)
    x, y = np.arange(10_000.0), rng.normal(size=10_000)
    xs, ys = charts.thin(x, y, 500)
    assert len(xs) <= 502
    assert (xs[0], xs[-1]) == (0, 9999)
    assert (ys.min(), ys.max()) == (y.min(), y.max())
    assert (np.diff(xs) > 0).all()


def test_scatter_tells_kept_from_dropped_without_colour():
    points = [charts.MapPoint(0, 0, True, 1, "<a>"), charts.MapPoint(1, 1, False, -1, "b")]
    svg = svgs(charts.scatter(points, "map"))[0]
    circles = svg.findall("circle")
    assert [c.get("class") for c in circles] == ["k g1", "d g-1"]
    assert [c.find("title").text for c in circles] == ["<a>", "b"]
    assert float(circles[0].get("cy")) > float(circles[1].get("cy"))  # y points up
    assert float(circles[0].get("cx")) < float(circles[1].get("cx"))
