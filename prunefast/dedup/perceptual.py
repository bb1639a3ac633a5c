"""Images that look the same: a hash of the signs of the lowest frequencies, and pairs by Hamming distance.

The image, in grey, is a function on the unit square that is constant on each pixel. Its cosine coefficients

    c_ij = integral of f(y, x) cos(pi i y) cos(pi j x)

are taken exactly (the integral of a cosine over a pixel is a difference of sines), so that nothing is resized to a grid
first and the size of the image does not matter. The 64 (or 256) lowest frequencies but the mean, by i^2 + j^2, give a
bit each: c_ij > 0. It is the DCT hash ("pHash", Zauner 2010) with signs for comparisons with a median, and a round
choice of frequencies; docs/deduplication.md has both measured.

JPEGs are decoded in grey at a reduced scale (an eighth of the side takes the coefficients of the format itself), which
is where the time goes otherwise. An image without structure would hash its noise: such images are told apart by their
brightness only.
"""

import functools
from dataclasses import dataclass

import numpy as np

from prunefast.data import ImageDataset
from prunefast.dedup.pairs import Pairs, nearest_of_pairs, number_contents
from prunefast.dedup.reading import for_each
from prunefast.errors import InputError, InputTypeError
from prunefast.ops import hamming_join
from prunefast.together import rows_of_everybody

BITS = (64, 256)
_PIXELS_PER_BIT_SIDE = 6  # decoded side over the square root of the bits: over two pixels a half wave of the highest
_FLAT = 0.1  # standard deviation in grey levels below which nothing but noise is left
_GREY_LEVELS = 255


@dataclass(frozen=True)
class PerceptualOptions:
    """bits      64, or 256 for finer distinctions (thresholds scale with it)
    mirrored  an image and its mirror image count as the same
    """

    bits: int = 64
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS or isinstance(self.bits, bool):
            raise InputError(f"bits: must be one of {', '.join(map(str, BITS))}, not {self.bits!r}")
        if not isinstance(self.mirrored, bool):
            raise InputTypeError(f"mirrored: must be True or False, not {self.mirrored!r}")


def find_perceptual(
    data: ImageDataset,
    against: ImageDataset | None,
    options: PerceptualOptions,
    max_threshold: int,
    *,
    within: bool,
    progress: bool,
) -> Pairs:
    plain, mirrored = perceptual_hashes(data, options.bits, progress)
    content, first = number_contents(plain)
    sides = [plain, mirrored] if options.mirrored else [plain]
    close = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    if within:
        close = _closest([(plain[first], None if side is plain else side[first]) for side in sides], max_threshold)
    near: dict[str, np.ndarray] = {}
    if against is not None:
        others, _ = perceptual_hashes(against, options.bits, progress)
        found = _closest([(side[first], others) for side in sides], max_threshold, ordered=False)
        index, value = nearest_of_pairs(*found, len(first))
        near = {"against": index[content], "against_distance": value[content]}
    return Pairs(content, *close, **near)


def _closest(
    joins: list[tuple[np.ndarray, np.ndarray | None]], max_threshold: int, ordered: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, other, distance) of the pairs that any of `joins` finds; the smaller distance of those found twice.

    ordered: both sides are the same images, and only row < other counts.
    """
    parts = [
        (found.rows(), found.index, found.distance) for found in (hamming_join(x, max_threshold, y) for x, y in joins)
    ]
    row, other, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    if ordered:
        row, other, distance = (column[row < other] for column in (row, other, distance))
    if len(joins) > 1:
        order = np.lexsort((distance, other, row))
        row, other, distance = row[order], other[order], distance[order]
        new = (np.diff(row, prepend=-1) != 0) | (np.diff(other, prepend=-1) != 0)
        row, other, distance = row[new], other[new], distance[new]
    return row, other, distance.astype(np.float64)


def perceptual_hashes(data: ImageDataset, bits: int, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [N, bits / 64]: the hashes of all images, and those of their mirror images."""
    both = rows_of_everybody(functools.partial(_hashes, data, bits, progress), len(data))
    return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


def _hashes(data: ImageDataset, bits: int, progress: bool, first: int, last: int) -> np.ndarray:
    """uint64 [last - first, 2, bits / 64]: plain and mirrored."""
    both = np.empty((last - first, 2, bits // 64), dtype=np.uint64)
    least = _PIXELS_PER_BIT_SIDE * int(bits**0.5)

    def take(start: int, stop: int) -> None:
        for row in range(start, stop):
            both[row] = hash_grey(data.grey(first + row, least), bits)

    for_each(take, last - first, "hashing", progress)
    return both


def hash_grey(image: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [bits / 64] of a grey image uint8 [H, W], and of its mirror image."""
    rows, columns = _frequencies(bits)
    count = int(max(rows.max(), columns.max())) + 1
    height, width = image.shape
    coefficients = _cosines(count, height) @ image.astype(np.float32) @ _cosines(count, width).T
    low = coefficients[rows, columns]
    if float(np.square(low, dtype=np.float64).sum()) < _FLAT**2:  # a cosine of amplitude a has variance a^2 / 2 or less
        level = round(float(coefficients[0, 0]) / _GREY_LEVELS * bits)
        flat = _pack(np.arange(bits) < level)
        return flat, flat
    return _pack(low > 0), _pack(np.where(columns % 2 == 1, -low, low) > 0)


@functools.cache
def _frequencies(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) of the lowest frequencies but the mean: by i^2 + j^2, then i."""
    side = 2 * int(bits**0.5)
    pairs = [(i, j) for i in range(side) for j in range(side) if i or j]
    chosen = np.array(sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair[0]))[:bits])
    return chosen[:, 0], chosen[:, 1]


@functools.lru_cache(maxsize=1024)
def _cosines(count: int, pixels: int) -> np.ndarray:
    """float32 [count, pixels]: the integral of cos(pi i x) over each pixel of the unit interval."""
    edge = np.arange(pixels + 1) / pixels
    out = np.empty((count, pixels), dtype=np.float64)
    out[0] = 1 / pixels
    for i in range(1, count):
        out[i] = np.diff(np.sin(np.pi * i * edge)) / (np.pi * i)
    return out.astype(np.float32)


def _pack(bit: np.ndarray) -> np.ndarray:
    return np.packbits(bit, bitorder="little").view("<u8").astype(np.uint64)
