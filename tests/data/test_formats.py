"""Every format gives the same images, labels and keys, judged by Pillow on the original bytes."""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from prunefast.data import from_arrays, open_dataset
from prunefast.errors import InputError, InputTypeError


def truth(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def tar_of(members, format=tarfile.GNU_FORMAT, prefix="", mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size, info.mtime = len(data), 1_600_000_000
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members, method=zipfile.ZIP_STORED, prefix=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(prefix + name, data)
    return buffer.getvalue()


PACKERS = {
    "plain.tar": tar_of,
    "pax.tar": lambda m: tar_of(m, tarfile.PAX_FORMAT),
    "ustar.tar": lambda m: tar_of(m, tarfile.USTAR_FORMAT),
    "wrapped.tar": lambda m: tar_of(m, prefix="./photos-main/"),
    "a.tar.gz": lambda m: gzip.compress(tar_of(m)),
    "a.tar.bz2": lambda m: bz2.compress(tar_of(m)),
    "a.tar.xz": lambda m: lzma.compress(tar_of(m)),
    "stored.zip": zip_of,
    "deflated.zip": lambda m: zip_of(m, zipfile.ZIP_DEFLATED),
    "wrapped.zip": lambda m: zip_of(m, zipfile.ZIP_DEFLATED, "photos-main/"),
    "no-suffix": tar_of,
}
CLUTTER = {
    "README.md": b"hello",
    ".DS_Store": b"x",
    "train/cat/Thumbs.db": b"x",
    "train/dog/._0.jpg": b"junk",
    "__MACOSX/a.jpg": b"x",
}


def check_against(data, files, split):
    names = sorted(name for name in files if split == "all" or name.startswith(split + "/"))
    assert list(data.keys) == names
    assert data.classes == ["cat", "dog", "eel"]
    assert [data.classes[k] for k in data.labels] == [name.split("/")[1] for name in names]
    assert data.labels.dtype == np.int64
    assert data.image_size == 16
    assert set(data.widths.tolist()) == set(data.heights.tolist()) == {16}
    images = data.images(range(len(data)))
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    for k, name in enumerate(names):
        assert data.read(k) == files[name]
        np.testing.assert_array_equal(images[k], truth(files[name]))
        np.testing.assert_array_equal(data.image(k), truth(files[name]))


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("split", [None, "test", "all"])
def test_archives_hold_what_the_folder_holds(tmp_path, files, packer, split):
    path = tmp_path / packer
    path.write_bytes(PACKERS[packer](files | CLUTTER if "wrapped" not in packer else files))
    for _ in range(2):  # built, then from the cache
        data = open_dataset(path, split=split)
        assert data.split == (split or "train")
        check_against(data, files, data.split)


def test_folder(write_folder, files):
    root = write_folder(files | CLUTTER)
    for split in (None, "train", "test", "all"):
        check_against(open_dataset(root, split=split), files, split or "train")
    check_against(open_dataset(os.path.relpath(root)), files, "train")
    inner = open_dataset(root / "train")  # the split's own folder: class folders at the top
    assert inner.split == "all"
    assert list(inner.keys) == sorted(name.removeprefix("train/") for name in files if name.startswith("train/"))
    assert inner.classes == ["cat", "dog", "eel"]


def test_a_tar_and_its_unpacked_folder_are_one_data_set(tmp_path, files):
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    with tarfile.open(tmp_path / "a.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    packed, unpacked = open_dataset(tmp_path / "a.tar"), open_dataset(tmp_path / "unpacked")
    assert packed.fingerprint == unpacked.fingerprint
    assert packed.keys == unpacked.keys


def test_flat_folder_has_no_labels(write_folder, files):
    data = open_dataset(write_folder({name.replace("/", "-"): content for name, content in files.items()}))
    assert data.labels is None
    assert data.classes == []
    assert data.split == "all"
    assert len(data) == len(files)


def test_wrapping_folder_is_looked_through(write_folder, files):
    check_against(
        open_dataset(write_folder({f"photos/{name}": content for name, content in files.items()})), files, "train"
    )


def test_a_lone_folder_of_images_is_a_class(write_folder, files):
    data = open_dataset(write_folder({f"cat/{k}.jpg": files["train/cat/0.jpg"] for k in range(2)}))
    assert data.classes == ["cat"]
    assert data.labels.tolist() == [0, 0]


def test_nested_class_folders_and_links(write_folder, files, tmp_path):
    jpeg = files["train/cat/0.jpg"]
    root = write_folder({"a/deep/er/1.jpg": jpeg, "b/1.JPG": jpeg})
    outside = write_folder({"x.jpg": jpeg}, "outside")
    (root / "a" / "linked").symlink_to(outside)
    (outside / "loop").symlink_to(outside)  # must end
    (root / "b" / "2.jpg").symlink_to(outside / "x.jpg")
    data = open_dataset(root)
    assert list(data.keys)[:1] == ["a/deep/er/1.jpg"]
    assert set(data.keys) >= {"a/linked/x.jpg", "b/1.JPG", "b/2.jpg"}
    assert data.classes == ["a", "b"]
    np.testing.assert_array_equal(data.images([len(data) - 1])[0], truth(jpeg))


def test_classes_are_named_as_torchvision_names_them(write_folder, files):
    jpeg = files["train/cat/0.jpg"]
    root = write_folder({f"{name}/x.jpg": jpeg for name in ("b", "B", "a-b", "a", "10", "9")})
    data = open_dataset(root)
    assert data.classes == sorted(["b", "B", "a-b", "a", "10", "9"])
    assert {key.split("/")[0]: data.classes[label] for key, label in zip(data.keys, data.labels, strict=True)} == {
        name: name for name in data.classes
    }


def test_of_two_members_of_one_name_the_last_counts(tmp_path, files):
    first, last = files["train/cat/0.jpg"], files["train/dog/0.jpg"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for data in (first, last):
            info = tarfile.TarInfo("a/x.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "twice.tar").write_bytes(buffer.getvalue())
    data = open_dataset(tmp_path / "twice.tar")
    assert len(data) == 1
    assert data.read(0) == last


def test_long_and_foreign_names_in_tars(tmp_path, files):
    jpeg = files["train/cat/0.jpg"]
    names = {f"c/{'long-' * 40}{k}.jpg": jpeg for k in range(3)} | {"c/Katze-ä-猫.jpg": jpeg}
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format}.tar"
        path.write_bytes(tar_of(names, format))
        assert set(open_dataset(path).keys) == set(names)


def test_edm_labels(tmp_path, files):
    jpeg = files["train/cat/0.jpg"]
    names = [f"{k // 2:05}/img{k:08}.jpg" for k in range(5)]
    labels = [3, 0, 0, 1, 3]
    content = json.dumps({"labels": [[name, label] for name, label in zip(names, labels, strict=True)][::-1]}).encode()
    path = tmp_path / "edm.zip"
    path.write_bytes(zip_of(dict.fromkeys(names, jpeg) | {"dataset.json": content}, zipfile.ZIP_DEFLATED))
    data = open_dataset(path)
    assert data.labels.tolist() == labels
    assert data.classes == ["0", "1", "2", "3"]
    path.write_bytes(zip_of(dict.fromkeys(names, jpeg) | {"dataset.json": b'{"labels": null}'}))
    assert open_dataset(path).labels is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "JSON"),
        (b"[1]", '"labels"'),
        (b'{"labels": [["a.jpg", 0]]}', "no label for"),
        (b'{"labels": [["a.jpg", 0], ["b.jpg", 1], ["c.jpg", 1]]}', "labels 3 images"),
        (b'{"labels": [["a.jpg", 0], ["b.jpg", 0.5]]}', "whole numbers"),
        (b'{"labels": [["a.jpg", 0], ["b.jpg", -1]]}', "whole numbers"),
        (b'{"labels": [["a.jpg", 0], ["b.jpg", 2000000000]]}', "without gaps"),
        (b'{"labels": [3]}', "list of"),
        (b'{"labels": ' + b"[" * 100_000, "JSON"),
    ],
)
def test_bad_edm_labels(tmp_path, files, content, words):
    jpeg = files["train/cat/0.jpg"]
    path = tmp_path / "edm.zip"
    path.write_bytes(zip_of({"a.jpg": jpeg, "b.jpg": jpeg, "dataset.json": content}))
    with pytest.raises(InputError, match=words) as caught:
        open_dataset(path)
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2, 2])


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy(tmp_path, version):
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, PIXELS, version=version)
    data = open_dataset(tmp_path / "x.npy")
    assert data.labels is None
    assert data.image_size == 6
    np.testing.assert_array_equal(data.images([6, 0, 1, 2, 2]), PIXELS[[6, 0, 1, 2, 2]])
    np.testing.assert_array_equal(data.image(3), PIXELS[3])
    assert data.read(3) == PIXELS[3].tobytes()


def test_npy_grey_and_planar(tmp_path):
    np.save(tmp_path / "grey.npy", PIXELS[..., 0])
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "grey.npy").images(range(7)), np.repeat(PIXELS[..., :1], 3, axis=3)
    )
    np.save(tmp_path / "planar.npy", np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(open_dataset(tmp_path / "planar.npy").images(range(7)), PIXELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("arr_0", "arr_1")])
def test_npz(tmp_path, save, keys):
    save(tmp_path / "a.npz", **dict(zip(keys, (PIXELS, LABELS[:, None]), strict=True)))
    for _ in range(2):
        data = open_dataset(tmp_path / "a.npz")
        assert data.labels.tolist() == LABELS.tolist()
        assert data.classes == ["0", "1", "2"]
        np.testing.assert_array_equal(data.images(range(7)), PIXELS)
        assert bool(data.notices) == (save is np.savez_compressed)  # the expanded copy is named


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (PIXELS.astype(np.float32), "float32"),
        (np.array([{}], dtype=object), "objects"),
        (PIXELS[0, 0], "shape"),
        (np.zeros((2, 5, 6, 7), np.uint8), "shape"),
        (PIXELS[:0], "no images"),
        (np.asfortranarray(PIXELS), "Fortran"),
        (np.array(3, np.uint8), "no images"),
    ],
)
def test_bad_npy(tmp_path, array, words):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": PIXELS}, "pictures"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "7 images"),
        ({"images": PIXELS, "labels": LABELS - 1}, "-1"),
        ({"images": PIXELS, "labels": LABELS + 0.0}, "whole numbers"),
        ({"images": PIXELS, "labels": np.array([{}] * 7)}, "whole numbers"),
        ({"images": PIXELS, "labels": LABELS * 10**9}, "without gaps"),
    ],
)
def test_bad_npz(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=words) as caught:
        open_dataset(tmp_path / "a.npz")
    assert "a.npz" in str(caught.value)


def test_npy_cut_short(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-1])
    with pytest.raises(InputError, match="cut short"):
        open_dataset(tmp_path / "x.npy")


def test_from_torch_tensors():
    import torch

    data = from_arrays(torch.from_numpy(PIXELS), torch.from_numpy(LABELS))
    assert data.fingerprint == from_arrays(PIXELS, LABELS).fingerprint
    np.testing.assert_array_equal(data.images(torch.tensor([4, 1])), PIXELS[[4, 1]])


def test_from_arrays():
    data = from_arrays(PIXELS, LABELS, classes=["a", "b", "c"])
    assert len(data) == 7
    assert data.path == ""
    assert data.labels.tolist() == LABELS.tolist()
    assert list(data.keys) == list("0123456")
    np.testing.assert_array_equal(data.images([3, 3, 0]), PIXELS[[3, 3, 0]])
    np.testing.assert_array_equal(data.image(2), PIXELS[2])
    with pytest.raises(InputError, match="memory"):
        data.read(0)
    grey = from_arrays(PIXELS[..., 0])
    assert grey.labels is None
    np.testing.assert_array_equal(grey.image(1), np.repeat(PIXELS[1, :, :, :1], 3, axis=2))
    # the fingerprint is one of the content
    assert from_arrays(PIXELS.copy(), LABELS).fingerprint == from_arrays(PIXELS, LABELS).fingerprint
    changed = PIXELS.copy()
    changed[6, 5, 5, 2] ^= 1
    different = [
        data,
        grey,
        from_arrays(changed, LABELS),
        from_arrays(PIXELS),
        from_arrays(PIXELS, LABELS[::-1].copy()),
    ]
    assert len({one.fingerprint for one in different}) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"images": PIXELS.astype(float)}, InputTypeError, "images"),
        ({"images": PIXELS.transpose(0, 3, 1, 2)}, InputError, "channels last"),
        ({"images": PIXELS[:0]}, InputError, "nothing"),
        ({"images": PIXELS, "labels": LABELS[:3]}, InputError, "labels"),
        ({"images": PIXELS, "labels": LABELS - 1}, InputError, "labels"),
        ({"images": PIXELS, "labels": LABELS.astype(float)}, InputTypeError, "labels"),
        ({"images": PIXELS, "labels": LABELS, "classes": ["a", "b"]}, InputError, "2 classes"),
        ({"images": PIXELS, "labels": LABELS, "classes": ["a", "b", "b"]}, InputError, "twice"),
        ({"images": PIXELS, "classes": ["a"]}, InputError, "without labels"),
        ({"images": PIXELS, "keys": ["a"]}, InputError, "keys"),
        ({"images": PIXELS, "keys": ["a"] * 7}, InputError, "twice"),
        ({"images": PIXELS, "image_size": 0}, InputError, "image_size"),
    ],
)
def test_bad_arrays(arguments, error, words):
    with pytest.raises(error, match=words):
        from_arrays(**arguments)


def test_tar_is_walked_past_large_members(tmp_path, files):
    """Headers further apart than the read-ahead window."""
    jpeg = files["train/cat/0.jpg"]
    members = {"a/0.jpg": jpeg, "big.bin": bytes(3 << 20), "a/1.jpg": jpeg, "b.bin": bytes(1 << 20), "a/2.jpg": jpeg}
    (tmp_path / "big.tar").write_bytes(tar_of(members))
    data = open_dataset(tmp_path / "big.tar")
    assert list(data.keys) == ["a/0.jpg", "a/1.jpg", "a/2.jpg"]
    np.testing.assert_array_equal(data.images([2, 0, 1]), np.stack([truth(jpeg)] * 3))


def test_base_256_sizes(tmp_path, files):
    """GNU tar writes numbers that do not fit octal in base 256; any number may be written so."""
    jpeg = files["train/cat/0.jpg"]
    raw = bytearray(tar_of({"a/0.jpg": jpeg}))
    raw[124:136] = b"\x80" + struct.pack(">3xQ", len(jpeg))
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "x.tar").write_bytes(raw)
    assert open_dataset(tmp_path / "x.tar").read(0) == jpeg
