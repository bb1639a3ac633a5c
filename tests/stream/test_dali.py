"""loader="dali": the images, order, state and errors of the native loader, whatever DALI is given and not given."""

import gc
import importlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from prunefast.cli import main
from prunefast.data import from_arrays, native, open_dataset
from prunefast.errors import InputError, MachineError, MissingDependencyError
from prunefast.stream import Batch, CoresetLoader, DaliOptions, DynamicPruning
from prunefast.stream import dali as module
from prunefast.train import TrainConfig, train


def _dali_is_there() -> bool:
    try:
        importlib.import_module("nvidia.dali")
    except Exception:
        return False
    return native.available()


needs_dali = pytest.mark.skipif(not _dali_is_there(), reason="DALI is not installed (pip install 'prunefast[dali]')")


class Coreset:
    def __init__(self, indices, fingerprint="a"):
        self.indices, self.fingerprint = np.asarray(indices), fingerprint
        self.weights = np.linspace(1, 2, len(self.indices))


def encoded(seed, width, height, kind="JPEG", mode="RGB", orientation=None, **options):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256 + 77)
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# name -> (options of `encoded`, whether DALI decodes it)
KINDS = {
    "4:2:0": ({"subsampling": 2}, True),
    "4:2:2": ({"subsampling": 1}, True),
    "4:4:4": ({"subsampling": 0}, True),
    "grey": ({"mode": "L"}, True),
    "own Huffman codes": ({"optimize": True}, True),
    "restart markers": ({"restart_marker_blocks": 3}, True),
    "poor": ({"quality": 5}, True),
    "EXIF, upright": ({"orientation": 1}, True),
    "EXIF, turned": ({"orientation": 6}, False),
    "progressive": ({"progressive": True}, False),
    "CMYK": ({"mode": "CMYK"}, False),
    "RGB": ({"keep_rgb": True}, False),
    "PNG": ({"kind": "PNG"}, False),
    "PNG with alpha": ({"kind": "PNG", "mode": "RGBA"}, False),
    "PNG of 16 bits": ({"kind": "PNG", "mode": "I;16"}, False),
    "WebP": ({"kind": "WEBP"}, False),
    "GIF": ({"kind": "GIF", "mode": "P"}, False),
}


@pytest.fixture(scope="module")
def blobs():
    """120 images of all kinds and of many sizes."""
    kinds = itertools.cycle(KINDS.values())
    sizes = np.random.default_rng(0).integers(9, 90, (120, 2)).tolist()
    return [encoded(k, w, h, **next(kinds)[0]) for k, (w, h) in enumerate(sizes)]


@pytest.fixture
def folder(blobs, tmp_path):
    root = tmp_path / "images"
    for k, blob in enumerate(blobs):
        path = root / "abc"[k % 3] / f"{k:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    return root


def write_tar(path, blobs):
    with tarfile.open(path, "w") as tar:
        for k, blob in enumerate(blobs):
            info = tarfile.TarInfo(f"{k:06}.jpg")
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return path


def collect(loader, count=None):
    batches = list(itertools.islice(loader, count))
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in Batch.__slots__}, batches


def assert_same(one, other):
    for name in one:
        assert torch.equal(one[name], other[name]), name


@needs_dali
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_has_the_pixels_of_the_native_loader(kind, tmp_path):
    """Bit for bit, on the CPU: at the images' own size, cut to a square, and made smaller and larger."""
    options, by_dali = KINDS[kind]
    for k, (width, height) in enumerate([(40, 40), (40, 40), (64, 41), (33, 77)]):
        (tmp_path / f"{k}.jpg").write_bytes(encoded(k, width, height, **options))
    for side in (40, 17, 90):
        data = open_dataset(tmp_path, image_size=side, cache_dir=tmp_path / "cache")
        loaders = [
            CoresetLoader(data, Coreset(range(4)), batch_size=4, epochs=1, placement="disk", loader=name)
            for name in ("native", "dali")
        ]
        assert_same(*(collect(loader)[0] for loader in loaders))
        assert loaders[1].decoded_by == {"dali": 4 * by_dali, "native": 4 * (not by_dali)}


@needs_dali
@pytest.mark.parametrize("form", ["folder", "tar", "zip", "deflated", "source"])
def test_the_batches_of_every_source(form, blobs, folder, tmp_path):
    path = folder
    if form == "tar":
        path = write_tar(tmp_path / "a.tar", blobs)
    elif form == "source":

        class Memory:
            keys = tuple(f"{k:03}" for k in range(len(blobs)))

            def read(self, item):
                return blobs[item]

        path = Memory()
    elif form != "folder":
        path = tmp_path / "a.zip"
        method = zipfile.ZIP_STORED if form == "zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for k, blob in enumerate(blobs):
                archive.writestr(f"{k:03}.jpg", blob)
    data = open_dataset(path, image_size=24, cache_dir=tmp_path / "cache")
    coreset = Coreset(np.random.default_rng(1).permutation(120)[:70])
    options = {"batch_size": 16, "epochs": 3, "seed": 4, "placement": "disk"}
    expected, _ = collect(CoresetLoader(data, coreset, **options))
    loader = CoresetLoader(data, coreset, **options, loader="dali", threads=3)
    found, batches = collect(loader)
    assert_same(expected, found)
    assert [len(batch) for batch in batches] == [16] * 13 + [2]
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    counts = loader.decoded_by
    assert sum(counts.values()) == 210
    assert min(counts.values()) > 60


@needs_dali
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
@pytest.mark.parametrize("order", [("native", "dali"), ("dali", "native"), ("dali", "dali")])
def test_either_loader_goes_on_where_the_other_stopped(folder, tmp_path, stop, order):
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")

    def make(name):
        return CoresetLoader(data, Coreset(range(0, 120, 3)), batch_size=7, seed=5, placement="disk", loader=name)

    whole, _ = collect(make("native"), 12)
    first, second = (make(name) for name in order)
    head = [batch.images for batch in itertools.islice(first, stop)]
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    rest, _ = collect(second, 12 - stop)
    assert torch.equal(torch.cat([*head, rest["images"]]), whole["images"])
    assert rest["position"][0] == 7 * stop
    assert make("native").state_dict() == make("dali").state_dict()


@needs_dali
def test_ranks_share_the_global_batch(folder, tmp_path):
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    options = {"epochs": 1, "placement": "disk"}
    whole, _ = collect(CoresetLoader(data, Coreset(range(120)), batch_size=12, **options))
    parts = [
        collect(CoresetLoader(data, Coreset(range(120)), batch_size=4, rank=r, world_size=3, loader="dali", **options))
        for r in range(3)
    ]
    order = torch.argsort(torch.cat([part["position"] for part, _ in parts]))
    assert torch.equal(torch.cat([part["images"] for part, _ in parts])[order], whole["images"])


@needs_dali
@pytest.mark.parametrize("options", [{"decode": "cpu"}, {"prefetch": 1}, {"prefetch": 9}])
@pytest.mark.parametrize("batch_size", [1, 5, 64, 500])
def test_batches_of_any_size_and_prefetch(folder, tmp_path, batch_size, options):
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    more = {"batch_size": batch_size, "epochs": 1, "placement": "disk"}
    expected, _ = collect(CoresetLoader(data, Coreset(range(40)), **more))
    found, _ = collect(CoresetLoader(data, Coreset(range(40)), **more, loader="dali", dali=DaliOptions(**options)))
    assert_same(expected, found)


@needs_dali
def test_other_ways_of_asking(folder, tmp_path, monkeypatch):
    """In memory, batches that grow (patches), pruning as it goes, and runs cut short because images are large."""
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    coreset = Coreset(range(120))

    def both(count, options, pruned=False):
        def found(name):
            more = {"pruning": DynamicPruning(120, 0, fraction=0.5, until=10**6)} if pruned else {}
            return collect(CoresetLoader(data, coreset, batch_size=8, seed=1, loader=name, **options, **more), count)[0]

        assert_same(found("native"), found("dali"))

    both(40, {"placement": "memory"})
    both(12, {"placement": "disk", "multiplier": lambda begin: 1 + begin % 3})
    both(20, {"placement": "disk"}, pruned=True)
    monkeypatch.setattr(module, "_RUN_BYTES", 3 * 40 * 40 * 2)  # two images of 40 px
    both(20, {"placement": "disk"})


@needs_dali
@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "zeros"])
def test_damaged_records_end_alike(form, damage, tmp_path):
    """Sums are checked before DALI sees a byte: errors, their places and replacements are the native loader's."""
    blobs = [encoded(k, 30, 30) for k in range(24)]
    if form == "tar":
        path = write_tar(tmp_path / "a.tar", blobs)
    else:
        path = tmp_path / "images"
        path.mkdir()
        for k, blob in enumerate(blobs):
            (path / f"{k:06}.jpg").write_bytes(blob)
    data = open_dataset(path, image_size=20, cache_dir=tmp_path / "cache")
    file, begin = (path, int(data.table["offset"][13].as_py())) if form == "tar" else (path / "000013.jpg", 0)
    raw, length = bytearray(file.read_bytes()), len(blobs[13])
    if damage == "flipped":
        raw[begin + length // 2] ^= 0x10
    else:
        raw[begin + length // 2 : begin + length] = b"\0" * (length - length // 2)
    if damage == "cut" and form == "folder":
        raw = raw[: length // 2]
    stat = file.stat()
    file.write_bytes(raw)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def until_error(name):
        loader = CoresetLoader(
            data, Coreset(range(24)), batch_size=4, shuffle=False, epochs=1, placement="disk", loader=name
        )
        seen = []
        with pytest.raises(InputError) as caught:
            seen.extend(batch.images for batch in loader)
        return str(caught.value), torch.cat(seen), loader.position

    native_error, dali_error = until_error("native"), until_error("dali")
    assert "000013.jpg" in dali_error[0]
    assert (native_error[0], native_error[2]) == (dali_error[0], 12)
    assert torch.equal(native_error[1], dali_error[1])

    def with_replacements(name):
        loader = CoresetLoader(
            data, Coreset(range(24)), batch_size=4, epochs=2, placement="disk", loader=name, on_error="replace"
        )
        with pytest.warns(UserWarning, match=r"000013\.jpg.*is shown in its place"):
            return collect(loader)[0], loader.replaced

    (expected, replaced), (found, also_replaced) = with_replacements("native"), with_replacements("dali")
    assert_same(expected, found)
    assert replaced == also_replaced
    assert len(replaced) == 1


RUBBISH = """
import sys, numpy as np, torch, warnings
from prunefast.data import open_dataset
from prunefast.stream.dali import DaliDecoder, DaliOptions
import os
tar, cache, replacement, rubbish = sys.argv[1:]
data = open_dataset(tar, image_size=32, cache_dir=cache, verify=False)
stat = os.stat(tar)
records = np.load(rubbish, allow_pickle=False)
with open(tar, "r+b") as file:
    for item, row in enumerate(records):
        file.seek(data.table["offset"][item].as_py())
        file.write(row[: data.table["length"][item].as_py()].tobytes())
os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
good = open_dataset(replacement, image_size=32, cache_dir=cache).images([0])[0]
last = len(data) - 1  # a good one, at the end
unreadable = set()
def replace(item, error):
    unreadable.add(item)
    return last
decoder = DaliDecoder(data, device=torch.device("cpu"), threads=2, batch_size=50, options=DaliOptions())
seen = 0
parts = (np.arange(k, min(k + 50, len(data))) for k in range(0, len(data), 50))
for items, images in decoder.decode_ahead(parts, replace):
    seen += len(items)
    for item, image in zip(items.tolist(), images.numpy()):
        assert item not in unreadable or (image == good).all()
print(seen, len(unreadable), decoder.counts["dali"])
"""


@needs_dali
def test_two_thousand_records_of_rubbish_end_with_replacements_not_with_the_process(tmp_path):
    """DALI 2.2 to 2.4 were seen to end the whole process on bytes such as these."""
    rng = np.random.default_rng(0)
    whole = encoded(0, 32, 32)
    size = len(whole)
    scan = whole.index(b"\xff\xda") + 14

    def rubbish(k):
        kind = k % 8
        if kind == 0:
            return rng.bytes(size)
        if kind == 1:
            return whole[: rng.integers(size)]
        if kind == 2:
            return b"\xff\xd8\xff\xe0" + rng.bytes(size - 4)
        if kind == 3:  # sound to its last header, then anything
            return whole[:scan] + rng.bytes(size - scan - 2).replace(b"\xff", b"\0") + b"\xff\xd9"
        if kind == 4:
            return encoded(k, 9, 9, "PNG")
        if kind == 5:
            return b"this is text, and nothing else. " * (size // 32)
        if kind == 6:
            flipped = bytearray(whole)
            for place in rng.integers(0, size, 5).tolist():
                flipped[place] = rng.integers(256)
            return bytes(flipped)
        return whole[:scan] + b"\xff\xd9"

    records = [rubbish(k) for k in range(2000)]
    tar = write_tar(tmp_path / "a.tar", [whole] * 2000 + [whole])
    table = np.zeros((2000, size), np.uint8)
    for row, record in zip(table, records, strict=True):
        row[: min(size, len(record))] = np.frombuffer(record[:size], np.uint8)
    np.save(tmp_path / "rubbish.npy", table)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "0.jpg").write_bytes(whole)
    arguments = [tar, tmp_path / "cache", tmp_path / "good", tmp_path / "rubbish.npy"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUBBISH, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-1000:])
    seen, unreadable, by_dali = map(int, done.stdout.split())
    assert seen == 2001
    assert unreadable >= 1000  # random bytes, text, cut ones, those without a scan
    assert 250 <= by_dali <= 600  # damaged coefficients alone: any decoder takes them


@needs_dali
def test_a_batch_that_dali_fails_on_is_decoded_natively(tmp_path, monkeypatch):
    """Should a record get past the check that DALI cannot decode: this batch and what went to the same pipeline."""
    for k in range(60):
        (tmp_path / f"{k:02}.jpg").write_bytes(encoded(k, 30, 30))
    data = open_dataset(tmp_path, image_size=30, cache_dir=tmp_path / "cache")
    given = type(data).jpegs

    def jpegs(self, items, threads=1):
        return [r[: len(r) // 2] if k == 33 else r for k, r in zip(items, given(self, items, threads), strict=True)]

    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "placement": "disk"}
    expected, _ = collect(CoresetLoader(data, Coreset(range(60)), **options))
    monkeypatch.setattr(type(data), "jpegs", jpegs)
    loader = CoresetLoader(data, Coreset(range(60)), **options, loader="dali")
    with pytest.warns(UserWarning, match=r"DALI failed on a batch.*(ailed|ailure)"):
        found, _ = collect(loader)
    assert_same(expected, found)
    assert 100 <= loader.decoded_by["dali"] < 120


@needs_dali
def test_a_dali_that_never_works_is_an_error(folder, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("CUDA driver version is insufficient\nfor CUDA runtime version")

    monkeypatch.setattr(module.DaliDecoder, "_make_pipeline", fail)
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    loader = CoresetLoader(data, Coreset(range(0, 120, 17)), batch_size=2, placement="disk", loader="dali")
    warnings.simplefilter("ignore")  # pytest puts it back
    with pytest.raises(MachineError, match=r"decoded none.*CUDA driver version is insuff"):
        collect(loader, 20)


@needs_dali
def test_images_that_are_not_for_dali_are_told_of_once(tmp_path):
    for k in range(20):
        (tmp_path / f"{k}.jpg").write_bytes(encoded(k, 8, 8, progressive=True))
    data = open_dataset(tmp_path, cache_dir=tmp_path / "cache")
    loader = CoresetLoader(data, Coreset(range(20)), batch_size=20, placement="disk", loader="dali")
    with pytest.warns(UserWarning, match="1,000 of the first 1,000 images are not upright baseline") as told:
        collect(loader, 60)
    assert len(told) == 1
    assert loader.decoded_by == {"dali": 0, "native": 1200}


@needs_dali
def test_memory_stays_as_it_is_over_epochs(tmp_path):
    for k in range(200):
        (tmp_path / f"{k:03}.jpg").write_bytes(encoded(k, 96, 96 + k % 7))
    data = open_dataset(tmp_path, image_size=64, cache_dir=tmp_path / "cache")
    loader = CoresetLoader(data, Coreset(range(200)), batch_size=32, epochs=1, placement="disk", loader="dali")

    def resident_bytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    used = []
    for _ in range(10):
        for batch in loader:
            assert len(batch)
        used.append(resident_bytes())
    assert max(used[3:]) - used[2] < 20e6


def prunefast_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prunefast")]


@needs_dali
def test_breaking_off_leaves_no_threads(folder, tmp_path):
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    loader = CoresetLoader(data, Coreset(range(120)), batch_size=8, placement="disk", loader="dali")
    natively = CoresetLoader(data, Coreset(range(120)), batch_size=8, placement="disk")
    for count in (1, 3, 2):  # the next iteration goes on where this one broke off
        for batch, expected in zip(itertools.islice(loader, count), itertools.islice(natively, count), strict=True):
            assert torch.equal(batch.images, expected.images)
    iterator = iter(loader)
    next(iterator)
    del iterator, loader
    gc.collect()
    for thread in prunefast_threads():
        thread.join(10)
    assert not prunefast_threads()


SCRIPT = """
import sys, numpy as np
from prunefast.data import open_dataset
from prunefast.stream import CoresetLoader
class C: indices, fingerprint = np.arange(120), "a"
data = open_dataset(sys.argv[1], image_size=16, cache_dir=sys.argv[2])
loader = CoresetLoader(data, C, batch_size=4, placement="disk", loader="dali")
{body}
"""


@needs_dali
def test_leaving_the_interpreter_in_mid_iteration(tmp_path, folder):
    body = "iterator = iter(loader); next(iterator); print('left')"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body), str(folder), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


@needs_dali
def test_ctrl_c_reaches_the_loop_at_once_and_nothing_hangs(tmp_path, folder):
    """The rest of the time is the interpreter's, which lets torch and DALI go."""
    body = (
        "print('go', flush=True)\n"
        "import time\n"
        "try:\n    for batch in loader: pass\n"
        "except KeyboardInterrupt:\n    print(time.monotonic(), flush=True); raise"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body), str(folder), str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "go\n"
        time.sleep(0.5)
        begin = time.monotonic()  # one clock for all processes
        process.send_signal(signal.SIGINT)
        reached, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert float(reached) - begin < 1
    assert error.strip().splitlines()[-1] == "KeyboardInterrupt"
    assert process.returncode == -2


@needs_dali
def test_after_a_fork_the_child_has_a_pipeline_of_its_own(folder, tmp_path):
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    loader = CoresetLoader(data, Coreset(range(120)), batch_size=8, placement="disk", loader="dali")
    first = next(iter(loader)).images
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child():
        results.put(next(iter(loader)).images.numpy())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's about forks beside threads
        process = context.Process(target=child)
        process.start()
    process.join(30)
    assert process.exitcode == 0
    again = CoresetLoader(data, Coreset(range(120)), batch_size=8, placement="disk")
    expected, _ = collect(again, 2)
    assert np.array_equal(results.get(), expected["images"][8:].numpy())
    assert torch.equal(first, expected["images"][:8])
    assert torch.equal(next(iter(loader)).images, expected["images"][8:])


@needs_dali
def test_training_is_the_same_to_the_bit(folder, tmp_path, capsys):
    """By the command line: all of it by the native loader; half of it by DALI, and continued by the native loader."""

    def train(name, *loaders):
        for images, loader in zip((48, 96), loaders, strict=True):
            flags = ["--image-size", "16", "--images", str(images), "--batch-size", "16", "--model", "unet-tiny"]
            more = ["--set", "placement=disk", "--set", "threads=2", "--device", "cpu", "--json", "--quiet"]
            arguments = ["--data", str(folder), "-o", str(tmp_path / name), "--loader", loader]
            assert main(["train", *arguments, *flags, *more]) == 0
        capsys.readouterr()
        (checkpoint,) = (tmp_path / name / "train").glob("checkpoint-*96")
        return load_file(checkpoint / "model.safetensors")

    expected, found = train("native", "native", "native"), train("both", "dali", "native")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(folder, tmp_path):
    """nvJPEG rounds otherwise; with DALI's CPU decoder the pixels are the same."""
    data = open_dataset(folder, image_size=24, cache_dir=tmp_path / "cache")
    options = {"batch_size": 16, "epochs": 2, "placement": "disk"}
    expected, _ = collect(CoresetLoader(data, Coreset(range(120)), **options))
    for decode in ("cpu", "mixed"):
        found, _ = collect(
            CoresetLoader(
                data, Coreset(range(120)), **options, device="cuda", loader="dali", dali=DaliOptions(decode=decode)
            )
        )
        assert torch.equal(found["index"].cpu(), expected["index"])
        difference = (found["images"].cpu().int() - expected["images"].int()).abs()
        assert difference.float().mean() < (1 if decode == "mixed" else 1e-9)


def test_without_dali_the_error_names_the_extra(folder, tmp_path, monkeypatch):
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    found = importlib.import_module

    def missing(name, *more):
        if name == "nvidia.dali":
            raise ModuleNotFoundError("No module named 'nvidia'", name="nvidia")
        return found(name, *more)

    def broken(name, *more):
        if name == "nvidia.dali":
            raise OSError("libdali.so: cannot open shared object file\nmore")
        return found(name, *more)

    for import_module, reason in ((missing, "is not installed"), (broken, "does not load .libdali.so")):
        monkeypatch.setattr(module.importlib, "import_module", import_module)
        with pytest.raises(MissingDependencyError, match=rf"{reason}.*prunefast\[dali") as caught:
            CoresetLoader(data, Coreset([1]), batch_size=1, loader="dali")
        assert "\n" not in str(caught.value)
        with pytest.raises(MissingDependencyError, match=reason):
            train(TrainConfig(out=str(tmp_path / "run"), images=8, loader="dali", model="unet-tiny"), data)
        assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(MissingDependencyError, match=r"prunefast\[dali-cuda12\]"):
        CoresetLoader(data, Coreset([1]), batch_size=1, loader="dali")
    monkeypatch.setattr(native, "images", None)
    with pytest.raises(MissingDependencyError, match="_images"):
        CoresetLoader(data, Coreset([1]), batch_size=1, loader="dali")


def test_what_does_not_go_together(folder, tmp_path):
    data = open_dataset(folder, image_size=16, cache_dir=tmp_path / "cache")
    pixels = from_arrays(np.zeros((3, 8, 8, 3), np.uint8))
    coreset = Coreset([0])
    for match, data_, options in (
        ("loader='nvidia'", data, {"loader": "nvidia"}),
        ("dali: goes with", data, {"dali": DaliOptions()}),
        ("placement='pack'", data, {"loader": "dali", "placement": "pack"}),
        ("nothing for DALI to decode", pixels, {"loader": "dali"}),
        ("decode='mixed': decodes on a GPU", data, {"loader": "dali", "dali": DaliOptions(decode="mixed")}),
    ):
        with pytest.raises(InputError, match=match):
            CoresetLoader(data_, coreset, batch_size=1, **options)
    for options in ({"decode": "gpu"}, {"prefetch": 0}, {"prefetch": 1.5}):
        with pytest.raises(InputError, match=next(iter(options))):
            DaliOptions(**options)
