"""The page in a real browser: nothing overflows, nothing is requested, the switches work, in light and dark."""

import pytest

from prunefast.report import report

from .browser import Browser, find_chromium
from .conftest import make_data, start_run

pytestmark = pytest.mark.browser

WIDTHS = {"desktop": 1280, "tablet": 768, "phone": 390, "small phone": 320}

# Elements that stick out of the page at the right or left, but for what is scrolled inside its own box on purpose.
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(e => {
  const r = e.getBoundingClientRect();
  return r.width > 0 && (r.right > innerWidth + 1 || r.left < -1) && !e.closest('.scroll') && !e.closest('.skip');
}).slice(0, 5).map(e => e.outerHTML.slice(0, 120))
"""

# Texts whose contrast with the page is below 4.5 (WCAG AA).
LOW_CONTRAST = """
(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
  const texts = 'p, td, th, h1, h2, h3, h4, a, figcaption, label, legend, dt, dd, small, svg text, summary';
  return [...document.querySelectorAll(texts)]
    .filter(e => e.getClientRects().length && e.textContent.trim()).filter(e => {
      const style = getComputedStyle(e), ink = e.tagName === 'text' ? style.fill : style.color;
      const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5;
    }).slice(0, 5).map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 40)); })()
"""

# Texts in charts smaller than can be read: their size on the screen in CSS pixels.
SMALLEST_CHART_TEXT = """
Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length)
  .map(e => parseFloat(getComputedStyle(e).fontSize) * e.getCTM().a || 99))
"""


@pytest.fixture(scope="module")
def browser():
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium found (Debian: apt-get install chromium)")
    with Browser(executable) as started:
        yield started


def check(browser, path, width, dark=False):
    browser.open(path, width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= browser.evaluate("innerWidth")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate(LOW_CONTRAST) == []
    outside = [url for url in browser.requests if not url.startswith("data:")]
    assert outside == [path.as_uri()]
    assert browser.problems == []
    # every picture was decoded
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_run(browser, run, width, dark):
    check(browser, report(run), width, dark)
    assert browser.evaluate(SMALLEST_CHART_TEXT) >= 11
    background = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_arms(browser, arms, width):
    run, folders = arms
    path = report(run, arms=folders)
    check(browser, path, width)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_do_not_stretch_the_page(browser, tmp_path, data_folder, width):
    from prunefast.data import open_dataset
    from prunefast.select import select

    folder = make_data(tmp_path / ("data" * 30), ("W" * 120, "漢字" * 30, "<b>bold</b> \u202e" + "x" * 80), each=9)
    run = start_run(tmp_path / "run", folder)
    select(open_dataset(folder), method="random", keep=0.5).save(run / "coreset.parquet")
    check(browser, report(run, title="T" * 200), width)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_the_policy_stops_what_a_page_could_ask_for(browser, run, tmp_path):
    """The checks above can fail: a page with a picture from outside is caught, and the policy stops it."""
    path = report(run)
    broken = tmp_path / "broken.html"
    text = path.read_text(encoding="utf-8").replace(
        "<main", '<img src="http://example.org/x.png"><script>document.title=1</script><main'
    )
    broken.write_text(text, encoding="utf-8")
    browser.open(broken, 1280)
    assert any("example.org" in problem for problem in browser.problems)
    assert browser.evaluate("document.title") != "1"
    with pytest.raises(AssertionError):
        check(browser, broken, 1280)


def test_an_overflowing_page_is_caught(browser, run, tmp_path):
    broken = tmp_path / "broken.html"
    text = report(run).read_text(encoding="utf-8").replace("<main", '<p style="min-width:2000px">wide</p><main')
    broken.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError):
        check(browser, broken, 390)


def test_the_map_switches_without_a_script(browser, run):
    browser.open(report(run), 1280)

    def visible(selector):
        return browser.evaluate(
            f"[...document.querySelectorAll('{selector}')].filter(e => e.getClientRects().length"
            " && getComputedStyle(e).opacity > 0.5).length"
        )

    assert visible(".map-points circle") == 90
    assert visible(".map-pictures image") == 0
    browser.evaluate("document.querySelector('label[for=class-1]').click()")
    assert visible(".map-points circle") == 30
    browser.evaluate("document.querySelector('label[for=view-pictures]').click()")
    assert visible(".map-points") == 0
    assert 0 < visible(".map-pictures g") < browser.evaluate("document.querySelectorAll('.map-pictures g').length")
    # by keyboard: arrow keys move within the group that has the focus
    browser.evaluate("document.getElementById('view-pictures').focus()")
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
    assert browser.evaluate("document.getElementById('view-points').checked")


def test_links_lead_to_their_sections(browser, run):
    browser.open(report(run), 1280)
    for name in browser.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))"):
        assert browser.evaluate(f"document.getElementById('{name}') !== null")


def test_it_prints(browser, run):
    import base64

    browser.open(report(run), 1280, dark=True)
    pdf = base64.b64decode(browser.call("Page.printToPDF", printBackground=False)["data"])
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 12
