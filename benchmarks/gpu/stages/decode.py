"""JPEGs to the device: the native loader, DALI's decoder on the GPU, and how far their pixels are apart."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu.job import Job, Skip, Unit

if TYPE_CHECKING:
    from prunefast.data import ImageDataset
    from prunefast.stream import CoresetLoader

ORDER, LIMIT = 55, 240
# name -> (width, height, side that is asked for, how many)
SETS = {"64": (64, 64, 64, 8192), "256": (256, 256, 256, 4096), "photos": (500, 375, 256, 2048)}
REHEARSAL = {"64": (16, 16, 16, 96), "photos": (50, 37, 20, 64)}
LOADERS = ("native", "dali", "dali-cpu")
FURTHEST = {"mean": 1.0, "max": 32}  # grey levels between nvJPEG and libjpeg-turbo; none where both are libjpeg-turbo


def units(job: Job) -> list[Unit]:
    sets = REHEARSAL if job.rehearse else SETS
    loading = [Unit(f"{loader} {name}", 12) for name in sets for loader in LOADERS]
    return [Unit("resize", 8), Unit("pixels", 15), Unit("broken", 15), *loading]


def run(job: Job, name: str) -> Iterator[dict[str, Any]]:
    if name == "resize":
        yield from resize(job)
        return
    if not name.startswith("native"):
        try:
            import nvidia.dali  # noqa: F401
        except Exception as error:  # a build for another CUDA raises anything
            raise Skip(f"DALI does not load; bring its wheels ({str(error).splitlines()[0]})") from None
    if name in ("pixels", "broken"):
        yield from {"pixels": pixels, "broken": broken}[name](job)
        return
    who, which = name.split()
    loader = make_loader(job, who, images(job, which))
    batches = iter(loader)
    yield {"images": which, "who": who} | rate(job, batches) | loader.decoded_by


def encoded(k: int, width: int, height: int) -> bytes:
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(k).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=90, subsampling=k % 3)
    return buffer.getvalue()


def images(job: Job, which: str) -> "ImageDataset":
    """A folder of JPEGs on the machine's disk, made once."""
    from prunefast.data import open_dataset

    width, height, side, count = (REHEARSAL if job.rehearse else SETS)[which]
    folder = job.folder("decode", which)
    for k in range(len(list(folder.iterdir())), count):
        Path(folder, f"{k:06}.jpg").write_bytes(encoded(k, width, height))
    return open_dataset(folder, image_size=side, cache_dir=job.folder("decode-cache"))


def make_loader(job: Job, who: str, data: "ImageDataset", batch: int = 256, **options: Any) -> "CoresetLoader":
    from prunefast.select import Coreset
    from prunefast.stream import CoresetLoader, DaliOptions

    if who != "native":
        decode = "cpu" if who == "dali-cpu" else "auto"
        options |= {"loader": "dali", "dali": DaliOptions(decode=decode)}
    batch = 32 if job.rehearse else batch
    return CoresetLoader(
        data, Coreset.full(data), batch_size=batch, device=job.device, placement="disk", seed=0, **options
    )


def rate(job: Job, batches: Iterator[Any]) -> dict[str, float]:
    """Images a second over some seconds, after the first batches."""
    import torch

    from gpu.job import on_gpu

    def wait() -> None:
        if on_gpu(job.device):
            torch.cuda.synchronize()

    for _ in range(2 if job.rehearse else 8):
        next(batches)
    wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < (0.2 if job.rehearse else 5.0):
        count += len(next(batches))
    wait()
    return {"images_per_second": count / (time.perf_counter() - start)}


def resize(job: Job) -> Iterator[dict[str, Any]]:
    """The resizing on the device against Pillow's, bit for bit, and its time."""
    import numpy as np
    import torch

    from gpu.timing import median_ms
    from prunefast.data.decode import fit_square
    from prunefast.stream.resample import resample

    sides, target = (
        (np.array([375, 256, 400, 100, 1000, 511]), 256) if not job.rehearse else (np.array([37, 20, 9]), 20)
    )
    squares = np.random.default_rng(0).integers(0, 256, (len(sides), sides.max(), sides.max(), 3), dtype=np.uint8)
    given = torch.from_numpy(squares).to(job.device)
    found = resample(given, sides, target).cpu().numpy()
    wrong = sum(
        int((image != fit_square(square[:side, :side], target)).sum())
        for image, square, side in zip(found, squares, sides.tolist(), strict=True)
    )
    many = given[:, :375, :375].repeat(3 if job.rehearse else 20, 1, 1, 1)
    timed = median_ms(lambda x: resample(x, np.full(len(x), x.shape[1]), target), [(many,)], job, graph=False)
    status = "bad" if wrong else "ok"
    each = {"images_per_second": 1e3 * len(many) / timed["ms"]}
    yield {"what": "resize", "status": status, "wrong_values": wrong, **timed, **each}


def pixels(job: Job) -> Iterator[dict[str, Any]]:
    """The same batches by both loaders: equal but for pixels, those within FURTHEST; and twice the same."""
    import torch

    for which in REHEARSAL if job.rehearse else SETS:
        data = images(job, which)
        for who in ("dali", "dali-cpu"):
            wanted = next(iter(make_loader(job, "native", data)))
            found = next(iter(make_loader(job, who, data)))
            again = next(iter(make_loader(job, who, data, batch=64)))
            apart = (found.images.int() - wanted.images.int()).abs()
            exact = who == "dali-cpu" or job.rehearse
            mean, most = float(apart.float().mean()), int(apart.max())
            fits = mean <= (0 if exact else FURTHEST["mean"]) and most <= (0 if exact else FURTHEST["max"])
            alike = torch.equal(found.index, wanted.index) and torch.equal(found.position, wanted.position)
            repeats = torch.equal(found.images[: len(again)], again.images)
            status = "ok" if fits and alike and repeats else "bad"
            yield {"images": which, "who": who, "status": status, "mean": mean, "max": most, "repeats": repeats}


def broken(job: Job) -> Iterator[dict[str, Any]]:
    """Sound headers with damaged scans, which pass the check before DALI, and rubbish, which does not.

    Where DALI dies, so does the process of this unit, and its row says so.
    """
    import numpy as np

    from prunefast.data import open_dataset
    from prunefast.stream import DaliOptions
    from prunefast.stream.dali import DaliDecoder

    rng = np.random.default_rng(0)
    whole = encoded(0, 64, 64)
    scan = whole.index(b"\xff\xda") + 14
    count = 64 if job.rehearse else 2048
    rotten = False

    class Rotten:  # sound while it is opened
        keys = tuple(map(str, range(count)))

        def read(self, item: int) -> bytes:
            if not rotten or item == 0:
                return whole
            if item % 2:
                return whole[:scan] + rng.bytes(len(whole) - scan).replace(b"\xff", b"\0") + b"\xff\xd9"
            return b"\xff\xd8\xff\xe0" + rng.bytes(len(whole))

    data = open_dataset(Rotten(), verify=False)
    rotten = True
    decoder = DaliDecoder(data, device=job.device, threads=4, batch_size=32, options=DaliOptions())
    parts = iter(np.array_split(np.arange(count), count // 32))
    shown = sum(int(images.sum() >= 0) * len(images) for _, images in decoder.decode_ahead(parts, lambda *_: 0))
    yield {"what": "broken", "shown": shown, "status": "ok" if shown == count else "bad"} | decoder.counts


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["decode", "status", "img/s", "what"]]
    for row in rows:
        speed = f"{row['images_per_second']:,.0f}" if "images_per_second" in row else ""
        names = ("images", "who", "mean", "max", "wrong_values", "shown", "dali", "native")
        lines.append([row["unit"], row["status"], speed, ", ".join(f"{n} {row[n]}" for n in names if n in row)])
    return lines
