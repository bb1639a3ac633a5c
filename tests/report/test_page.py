"""The whole page: what is on it, what is left out with a word, and what names from outside cannot do."""

import base64
import html.parser
import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

from prunefast.data import from_arrays, open_dataset
from prunefast.dedup import deduplicate
from prunefast.errors import InputError
from prunefast.report import report
from prunefast.report.gather import read_training
from prunefast.report.thumbnails import data_uri
from prunefast.select import Coreset, select

from .conftest import CLASSES, finish_arm, make_data, start_run

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = ("<script>alert(1)<", "\"'><img src=x onerror=alert(2)>", "‮gpj.exe & été 漢字 🐈")


class Page(html.parser.HTMLParser):
    """Tags, attributes and texts of a page, with the nesting checked."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, text):
        if self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(text)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def section(page_text, name):
    """Source of one section."""
    return page_text.split(f'<h2 id="{name}">')[1].split("</section>")[0]


def test_a_whole_run(run):
    path = report(run)
    assert path == run / "report.html"
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert "fruit: 27 of 90 images kept" in page.text
    for piece in ("gaussian", "class by class", "keep = 0.3", "pixels", "Frechet distance", "unet-tiny", "ddim"):
        assert piece in page.text
    for name in CLASSES:
        assert name in page.text
    for name in ("scores", "balance", "images", "map", "training", "samples", "metrics", "manifest"):
        assert f'<h2 id="{name}">' in source
    assert "Left out" not in page.text
    images = [image for image in page.all("img") if "kept, gaussian score" in image["alt"]]
    assert {image["src"].split(",")[0] for image in images} <= {"data:image/png;base64", "data:image/jpeg;base64"}
    # 9 of 30 are kept in each class: every kept image is shown once in the galleries
    gallery = section(source, "images")
    assert len(re.findall(r'<img [^>]*alt="[^"]*, kept, ', gallery)) == 27
    assert len(re.findall(r'<img [^>]*alt="[^"]*, dropped, ', gallery)) == 3 * 16
    assert section(source, "samples").count("<img ") == 12
    assert len(re.findall("<circle", section(source, "map"))) == 90
    assert path.stat().st_size < 500_000


def test_the_order_of_a_gallery_is_that_of_the_scores(run):
    coreset = Coreset.load(run / "coreset.parquet")
    gallery = section(report(run).read_text(encoding="utf-8"), "images")
    first = re.search(r'alt="(apple/\d+\.png), kept', gallery).group(1)
    mine = np.flatnonzero(coreset.keep & (coreset.labels == 0))
    assert first == coreset.keys[mine[np.argmax(coreset.scores[mine])]]


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    first = report(run).read_bytes()
    assert report(run, out=tmp_path / "again.html").read_bytes() == first


def test_nothing_comes_from_outside(run):
    source = report(run).read_text(encoding="utf-8")
    page = Page(source)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not page.all("script")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "action", "data", "poster", "xlink:href"):
                assert value.startswith(("data:", "#")), (name, value[:60])
    assert "http://" not in source
    assert "https://" not in source
    assert "@import" not in source
    assert "url(" not in source


def test_it_can_be_read_without_seeing_it(run):
    page = read(report(run))
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert all(header.get("scope") for header in page.all("th"))
    targets = {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")}
    assert targets <= set(identifiers)
    labels = {label["for"] for label in page.all("label")}
    assert labels == {box["id"] for box in page.all("input")}
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def test_hostile_names_are_only_names(tmp_path):
    data_folder = make_data(tmp_path / "a<b>&'data", HOSTILE, each=8)
    (data_folder / HOSTILE[1] / "000.png").rename(data_folder / HOSTILE[1] / '"><svg onload=alert(3)>\n.png')
    run = start_run(tmp_path / "run", data_folder)
    data = open_dataset(data_folder)
    coreset = select(data, features=np.load(run / "features.npy"), method="gaussian", keep=0.5, per_class=True)
    coreset.save(run / "coreset.parquet")
    arm = tmp_path / "arm"
    coreset.save(arm / "coreset.parquet")
    for options in ({}, {"arms": {"<script>alert(4)</script>": arm}}, {"title": "<script>\u202etitle"}):
        path = report(run, **options)
        source = path.read_text(encoding="utf-8")
        page = Page(source)
        assert not page.all("script")
        assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
        assert "\u202e" not in source
        assert "⟨U+202E⟩" in source
        assert "alert(1)" in page.text
        assert all(image["src"].startswith("data:") for image in page.all("img"))


def test_parts_that_are_missing_are_left_out_with_a_word(run):
    removed = []
    for name, word in (
        ("metrics.json", "metrics.json"),
        ("samples", "samples/"),
        ("train", "train/"),
        ("scores.parquet", None),
        ("features.npy", "features.npy"),
        ("items.parquet", "items.parquet"),
    ):
        path = run / name
        path.rename(run / f"removed-{name}")
        text = read(report(run)).text
        assert "27 of 90 images kept" in text
        if word:
            removed.append(word)
        for gone in removed:
            assert re.search(f"Left out: [^.]*{re.escape(gone)}", text), gone


def test_only_training_yet(run):
    (run / "coreset.parquet").unlink()
    text = read(report(run)).text
    assert "no coreset.parquet" in text
    assert "unet-tiny" in text


def test_nothing_at_all(tmp_path, data_folder):
    with pytest.raises(InputError, match="no such run folder"):
        report(tmp_path / "none")
    folder = start_run(tmp_path / "run", data_folder)
    (folder / "groups.parquet").unlink()
    with pytest.raises(InputError, match="nothing to report yet"):
        report(folder)


def test_broken_parts_say_what_is_broken(run):
    (run / "metrics.json").write_text("{")
    (run / "train" / "summary.json").write_text("[")
    (run / "features.npy").write_bytes(b"\x93NUMPY")
    text = read(report(run)).text
    assert re.search(r"Left out: [^.]*metrics\.json", text)
    assert re.search(r"Left out: [^.]*features\.npy", text)
    assert re.search(r"Left out: [^.]*summary\.json", text)
    assert "27 of 90 images kept" in text


def test_images_that_went_away(run, data_folder, tmp_path):
    moved = make_data(tmp_path / "gone", each=10)
    other = start_run(tmp_path / "other", moved)
    data = open_dataset(moved)
    select(data, method="random", keep=0.5).save(other / "coreset.parquet")
    for path in moved.rglob("*.png"):
        path.unlink()
    text = read(report(other)).text
    assert "15 of 30 images kept" in text
    assert "Left out:" in text
    assert "apple/000.png, " in text  # names stand in for the pictures


def test_a_killed_run_leaves_half_a_line(run):
    path = run / "train" / "metrics.jsonl"
    whole = path.read_text().splitlines()
    lines = [*whole[:40], '{"images": 1, "loss": NaN}', "", "null", '{"images": 5}', '{"images": "a", "loss": 1}']
    lines += [*whole[40:60], whole[60][:17]]
    path.write_text("\n".join(lines))
    (run / "train" / "summary.json").unlink()
    found = read_training(run / "train")
    assert len(found.loss) == 60
    assert found.skipped == 5
    assert (np.diff(found.images) > 0).all()
    text = read(report(run)).text
    assert "5 unreadable or non-finite lines" in text
    assert "training loss" in text


def test_metrics_of_bytes_that_are_no_text(run):
    (run / "train" / "metrics.jsonl").write_bytes(b"\xff\xfe\x00\n" + b'{"images": 10, "loss": 0.5}\n')
    assert read_training(run / "train").loss.tolist() == [0.5]
    report(run)


def test_a_run_without_classes(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(40):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{k:02d}.png")
    run = start_run(tmp_path / "run", folder)
    data = open_dataset(folder)
    select(data, features=np.load(run / "features.npy"), method="gaussian", keep_n=10).save(run / "coreset.parquet")
    source = report(run).read_text(encoding="utf-8")
    assert '<h2 id="balance">' not in source
    text = Page(source).text
    assert "keep_n = 10" in text
    assert "or more are kept" in text
    assert "cut −" in text or "cut " in text


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"method": "random", "keep": 0.5}, "drawn at random"),
        ({"method": "moderate", "keep": 0.5}, "score"),
        ({"method": "clusters", "k": 4, "keep": 0.5}, "one cut a cluster"),
        ({"method": "gaussian", "keep": 1.0}, "Every image is kept"),
        ({"method": "gaussian", "keep": 0.5, "must_keep": [0, 1]}, "2 images by must_keep"),
    ],
)
def test_every_method_is_explained(tmp_path, data_folder, options, word):
    run = start_run(tmp_path / "run", data_folder)
    data = open_dataset(data_folder)
    features = None if options["method"] == "random" else np.load(run / "features.npy")
    select(data, features=features, **options).save(run / "coreset.parquet")
    if options["method"] == "random":
        (run / "scores.parquet").unlink()
    assert word in read(report(run)).text


def test_a_random_selection_is_compared_with_the_runs_scores(tmp_path, data_folder):
    run = start_run(tmp_path / "run", data_folder)
    select(open_dataset(data_folder), method="random", keep=0.5).save(run / "coreset.parquet")
    text = read(report(run)).text
    assert "did not look at the gaussian score" in text
    assert "Kept, drawn at random" in text
    assert "highest scores" not in text  # nothing is ordered by a score that played no part


def test_balance_tells_before_and_after(tmp_path, data_folder):
    run = start_run(tmp_path / "run", data_folder)
    data = open_dataset(data_folder)
    Coreset.from_indices(data, np.arange(40)).save(run / "coreset.parquet")  # all apples, ten pears, no plum
    text = read(report(run)).text
    assert "Before: all 3 classes have 30 images each. After: 1 of 3 classes keeps no image at all." in text
    Coreset.from_indices(data, np.r_[0:20, 30:40, 60:65]).save(run / "coreset.parquet")
    assert "After: the largest class has 20 images, 4 times the smallest (5)." in read(report(run)).text


def test_many_classes_are_cut_to_the_telling_ones(tmp_path):
    labels = np.repeat(np.arange(100), 6)
    images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    folder = tmp_path / "data"
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / f"class{label:03d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k}.png")
    run = start_run(tmp_path / "run", folder)
    data = open_dataset(folder)
    keep = [k for k in range(600) if k % 6 < 1 + labels[k] // 20]  # 1 of 6 of the first classes, 5 of 6 of the last
    Coreset.from_indices(data, keep).save(run / "coreset.parquet")
    source = report(run).read_text(encoding="utf-8")
    text = Page(source).text
    assert "76 more classes are not shown" in text
    assert "40 of 100 classes are left out" in text
    shown = re.findall(r"<h3>class(\d+)</h3>", source)
    assert len(shown) == 24
    assert sum(int(name) < 20 for name in shown) == sum(int(name) >= 80 for name in shown) == 12
    assert 'id="class-0"' not in source  # too many to switch between
    assert len(source) < 3_000_000


def test_arms_side_by_side(arms):
    run, folders = arms
    path = report(run, arms=folders)
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert "4 selections of fruit, side by side" in page.text
    rows = re.findall(r'<tr><th scope="row"><a href="#arm-\d">(.*?)</a>(.*?)</tr>', section(source, "comparison"), re.S)
    assert [name for name, _ in rows] == list(folders)
    for (name, cells), folder in zip(rows, folders.values(), strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
        summary = json.loads((folder / "train" / "summary.json").read_text())
        kept = len(Coreset.load(folder / "coreset.parquet"))
        shown = re.sub("<[^>]*>", " ", cells)
        assert f" {kept} " in shown
        for value in (f"{metrics['frechet_distance']:,.2f}", f"{metrics['recall']:.3f}", f"{summary['loss']:.4f}"):
            assert value in shown, name
        assert f"{summary['images_per_second']:.0f}" in shown
    best = re.findall(r'data-label="Frechet distance"><span class="best"><b>([\d.]+)', source)
    distances = [json.loads((f / "metrics.json").read_text())["metrics"]["frechet_distance"] for f in folders.values()]
    assert best == [f"{min(distances):,.2f}"]
    assert source.count('class="small-map"') == 4
    assert len(re.findall('class="mean line', section(source, "training"))) == 2 * 4  # two widths
    assert path.stat().st_size < 1_500_000


def test_arms_that_are_incomplete(arms):
    run, folders = arms
    (folders["random"] / "metrics.json").unlink()
    (folders["random"] / "train" / "summary.json").unlink()
    (folders["random"] / "train" / "metrics.jsonl").unlink()
    (folders["equal clusters"] / "coreset.parquet").unlink()
    text = read(report(run, arms=folders)).text
    assert "no metrics.json" in text
    assert "no coreset.parquet" in text
    assert "—" in text


def test_arms_evaluated_differently_are_flagged(arms, data_folder):
    run, folders = arms
    assert "do not compare" not in read(report(run, arms=folders)).text
    path = folders["random"] / "metrics.json"
    stored = json.loads(path.read_text())
    stored["protocol"]["sample_count"] = 99
    path.write_text(json.dumps(stored))
    assert "do not compare" in read(report(run, arms=folders)).text


def test_bad_arms(run, tmp_path):
    with pytest.raises(InputError, match="arms: is empty"):
        report(run, arms={})
    with pytest.raises(InputError, match=r"'x'.*no such folder"):
        report(run, arms={"x": tmp_path / "none"})


def test_a_coreset_of_other_data_is_refused(run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    Coreset.full(from_arrays(images)).save(run / "coreset.parquet")
    with pytest.raises(InputError, match="another data set"):
        report(run)


def test_output_that_cannot_be_written(run, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        report(run, out=tmp_path)
    (tmp_path / "file").write_text("in the folder's place")
    with pytest.raises(InputError, match="file"):
        report(run, out=tmp_path / "file" / "report.html")
    assert not list(tmp_path.glob("**/.prunefast-tmp-*"))


def test_closest_pairs_show_sample_and_training_image(run, data_folder, tmp_path):
    source = report(run).read_text(encoding="utf-8")
    assert section(source, "metrics").count('<li class="pair">') == 8
    path = run / "metrics.json"
    stored = json.loads(path.read_text())
    stored["metrics"]["memorisation"]["closest"] = [{"sample": "gone.png"}, 3, {"training_index": "x"}, None]
    path.write_text(json.dumps(stored))
    assert '<li class="pair">' not in section(report(run).read_text(encoding="utf-8"), "metrics")


@pytest.mark.parametrize("size", [8, 32, 64, 200])
def test_thumbnails_are_small_and_look_like_the_image(size):
    y, x = np.mgrid[:size, :size] / size
    image = np.stack([255 * x, 255 * y, 128 + 0 * x], axis=2).astype(np.uint8)
    uri = data_uri(image)
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert max(picture.size) == min(size, 64)
    small = np.asarray(Image.fromarray(image).resize(picture.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - small).mean() < 4
    assert len(uri) < 6000


def test_grey_thumbnails_are_grey():
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8), 3, axis=2)
    assert len(data_uri(image)) < 300


def test_finish_arm_is_what_the_page_shows(tmp_path, data_folder):
    """The fixture's samples reach the page by class."""
    data = open_dataset(data_folder)
    run = start_run(tmp_path / "run", data_folder)
    finish_arm(run, data_folder, select(data, method="random", keep=0.5), samples=9)
    samples = section(report(run).read_text(encoding="utf-8"), "samples")
    assert samples.count("<img ") == 9
    assert "9 of 9 generated images" in samples


def test_duplicates_show_the_survivor_and_what_it_stands_for(run, data_folder):
    data = open_dataset(data_folder)
    found = deduplicate(data, threshold=22, max_threshold=64)
    found.save(run, data)
    assert len(found.dropped) > 5
    page = section(report(run).read_text(encoding="utf-8"), "duplicates")
    assert f"{len(found.dropped):,} of 90 images" in page
    groups = sorted(found, key=lambda group: -len(group.dropped))[:24]
    shown = re.findall(r'<img [^>]*alt="([^",]*), [^"]*, kept"', page)
    assert shown == [data.keys[group.kept] for group in groups]
    dropped = re.findall(r'<img [^>]*alt="([^",]*), [^"]*, dropped, distance', page)
    assert dropped == [data.keys[i] for group in groups for i in group.dropped[:7]]
    worst = found.least_similar(1)[0]
    first = re.search(r'alt="Dropped: ([^"]*)"[^>]*><img [^>]*><span>distance ([^<]*)<', page)
    assert first.groups() == (data.keys[worst[0]], f"{worst[2]:g}")


def test_nearest_kept_image_of_what_was_dropped(run, data_folder):
    coreset = Coreset.load(run / "coreset.parquet")
    features = np.load(run / "features.npy").astype(np.float64)
    page = section(report(run).read_text(encoding="utf-8"), "nearest")
    apart = np.linalg.norm(features[coreset.dropped][:, None] - features[coreset.indices][None], axis=2)
    worst = coreset.dropped[apart.min(1).argmax()]
    partner = coreset.indices[apart[apart.min(1).argmax()].argmin()]
    first = re.search(r'alt="Dropped: ([^,"]*), nearest kept ([^"]*)"', page)
    assert first.groups() == (coreset.keys[worst], coreset.keys[partner])
    assert page.count('<li class="pair">') == 24
    (run / "features.npy").unlink()
    assert "Left out: no features.npy" in section(report(run).read_text(encoding="utf-8"), "nearest")


def test_cluster_sheets_show_kept_and_dropped_images_of_each(run, data_folder):
    data = open_dataset(data_folder)
    coreset = select(data, features=np.load(run / "features.npy"), method="clusters", k=20, keep=0.3)
    coreset.save(run / "coreset.parquet")
    source = report(run).read_text(encoding="utf-8")
    page = section(source, "clusters")
    assert "12 of 20 clusters" in page
    assert page.count("<h3>Cluster ") == 12
    row_of = {key: row for row, key in enumerate(data.keys)}
    sheet = re.split("<h3>Cluster ", page)[1]
    cluster = int(sheet.split("<")[0])
    named = re.findall(r'alt="([^",]*), (kept|dropped)"', sheet)
    assert named
    assert all(coreset.clusters[row_of[key]] == cluster for key, _ in named)
    assert all(coreset.keep[row_of[key]] == (state == "kept") for key, state in named)


def test_a_broken_or_missing_deduplication_is_left_out_with_a_word(run):
    (run / "pairs.parquet").write_bytes(b"PAR1")
    assert re.search(r"Left out: [^.]*pairs\.parquet", read(report(run)).text)
    (run / "groups.parquet").unlink()
    assert "Left out: no groups.parquet (prunefast dedup makes it)" in read(report(run)).text
