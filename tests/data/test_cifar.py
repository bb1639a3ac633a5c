"""CIFAR batches as published; the pickles are written by hand, opcode by opcode, and checked by the real unpickler."""

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from prunefast.data import cifar, open_dataset
from prunefast.errors import InputError

COUNT = 4


def old_string(data):
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def old_array(pixels):
    """numpy.ndarray as Python 2's cPickle wrote it, protocol 2."""
    shape = b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape)
    dtype = b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01"
        + shape
        + b"\x86"
        + dtype
        + b"\x89"
        + old_string(pixels.tobytes())
        + b"tb"
    )


def old_list(values):
    items = (b"K" + bytes([value]) if isinstance(value, int) else old_string(value) for value in values)
    return b"](" + b"".join(items) + b"e"


def old_pickle(entries):
    return b"\x80\x02}q\x01(" + b"".join(old_string(key) + value for key, value in entries) + b"u."


def batch(seed, labels=(3, 0, 1, 3)):
    pixels = np.random.default_rng(seed).integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    entries = [
        (b"batch_label", old_string(b"training batch 1 of 5")),
        (b"labels", old_list(labels)),
        (b"data", old_array(pixels)),
        (b"filenames", old_list([b"x_s_%06d.png" % k for k in range(COUNT)])),
    ]
    return old_pickle(entries), pixels, list(labels)


NAMES = [b"airplane", b"automobile", b"bird", b"cat"]


@pytest.fixture
def published():
    """CIFAR-10 python: file name -> bytes, and the truth of each batch."""
    out, truth = {}, {}
    for k, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        out[name], *truth[name] = batch(k)
    out["batches.meta"] = old_pickle([(b"num_cases_per_batch", b"M\x10\x27"), (b"label_names", old_list(NAMES))])
    return out, truth


def test_the_hand_made_pickle_is_one(published):
    out, truth = published
    loaded = pickle.loads(out["data_batch_1"], encoding="bytes")  # made here, so it may be trusted
    np.testing.assert_array_equal(loaded[b"data"], truth["data_batch_1"][0])
    assert loaded[b"labels"] == truth["data_batch_1"][1]


def as_images(pixels):
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def check(data, truth, names):
    assert data.image_size == 32
    assert data.classes == [name.decode() for name in NAMES]
    assert data.labels.tolist() == [label for name in names for label in truth[name][1]]
    np.testing.assert_array_equal(
        data.images(range(len(data))), as_images(np.concatenate([truth[name][0] for name in names]))
    )
    np.testing.assert_array_equal(data.image(1), as_images(truth[names[0]][0])[1])
    assert data.keys[1] == f"{names[0]}/00001"


def tar_of(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_cifar10_python(tmp_path, published, write_folder):
    out, truth = published
    train = [f"data_batch_{k}" for k in range(1, 6)]
    paths = [
        write_folder(out, "bare"),
        write_folder({f"cifar-10-batches-py/{name}": data for name, data in out.items()}, "as-unpacked"),
        tmp_path / "cifar-10-python.tar.gz",
    ]
    paths[2].write_bytes(gzip.compress(tar_of({f"cifar-10-batches-py/{name}": data for name, data in out.items()})))
    for path in paths:
        for _ in range(2):
            data = open_dataset(path)
            assert data.split == "train"
            check(data, truth, train)
        check(open_dataset(path, split="test"), truth, ["test_batch"])
        check(open_dataset(path, split="all"), truth, [*train, "test_batch"])
        with pytest.raises(InputError, match="train, test"):
            open_dataset(path, split="val")
    prints = {open_dataset(path).fingerprint for path in paths}
    assert len(prints) == 1  # the same pixels, wherever they lie
    assert open_dataset(paths[0], split="test").fingerprint not in prints


@pytest.mark.parametrize("protocol", [3, 4])
def test_batches_saved_again_by_python_3(write_folder, published, protocol):
    out, truth = published
    for name in truth:
        pixels, labels = truth[name]
        out[name] = pickle.dumps({"data": pixels, "labels": labels}, protocol=protocol)
    out["batches.meta"] = pickle.dumps({"label_names": [name.decode() for name in NAMES]}, protocol=protocol)
    check(open_dataset(write_folder(out)), truth, [f"data_batch_{k}" for k in range(1, 6)])


def test_cifar10_binary(write_folder, published):
    _, truth = published
    out = {"batches.meta.txt": b"\n".join(NAMES) + b"\n\n"}
    for name, (pixels, labels) in truth.items():
        out[name + ".bin"] = b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))
    data = open_dataset(write_folder(out))
    check(data, {name + ".bin": value for name, value in truth.items()}, [f"data_batch_{k}.bin" for k in range(1, 6)])
    out["data_batch_2.bin"] = out["data_batch_2.bin"][:-1]
    with pytest.raises(InputError, match=r"data_batch_2\.bin.*cut short"):
        open_dataset(write_folder(out))


def test_cifar100(write_folder):
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    fine, coarse = [2, 0, 1, 2], [1, 0, 0, 1]
    content = old_pickle(
        [(b"fine_labels", old_list(fine)), (b"coarse_labels", old_list(coarse)), (b"data", old_array(pixels))]
    )
    meta = old_pickle(
        [(b"coarse_label_names", old_list([b"x", b"y"])), (b"fine_label_names", old_list([b"a", b"b", b"c"]))]
    )
    data = open_dataset(write_folder({"train": content, "test": content, "meta": meta}, "python"))
    assert data.labels.tolist() == fine
    assert data.classes == ["a", "b", "c"]
    np.testing.assert_array_equal(data.images(range(4)), as_images(pixels))
    rows = b"".join(bytes([c, f]) + row.tobytes() for c, f, row in zip(coarse, fine, pixels, strict=True))
    data = open_dataset(
        write_folder({"train.bin": rows, "test.bin": rows, "fine_label_names.txt": b"a\nb\nc\n"}, "binary"),
        split="test",
    )
    assert data.labels.tolist() == fine
    np.testing.assert_array_equal(data.images([3, 0]), as_images(pixels)[[3, 0]])


class Bomb:
    def __reduce__(self):
        return os.mkdir, (Bomb.target,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_with_code_runs_nothing(tmp_path, write_folder, published, protocol):
    out, _ = published
    Bomb.target = str(tmp_path / "owned")
    out["data_batch_3"] = pickle.dumps({"data": Bomb(), "labels": [0]}, protocol=protocol)
    root = write_folder(out)
    with pytest.raises(InputError) as caught:
        open_dataset(root)
    text = str(caught.value)
    assert "data_batch_3" in text
    assert "code" in text
    assert "\n" not in text
    assert not os.path.exists(Bomb.target)


@pytest.mark.parametrize(
    "content",
    [
        # a foreign class as an argument
        b"cnumpy.core.multiarray\n_reconstruct\ncbuiltins\nexec\nK\x00\x85U\x01b\x87R.",
        b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",  # calling ndarray itself: an allocation of any size
        b"cnumpy\ndtype\nU\x02u1\x85R(K\x01tb.",
        b"(U\x01ai__main__\nX\n.",  # INST
        b"\x80\x02]Q.",  # BINPERSID
        b"\x82\x01.",  # extension registry
    ],
)
def test_other_ways_to_call_things(tmp_path, content):
    (batch := tmp_path / "batches").mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        (batch / name).write_bytes(content)
    with pytest.raises(InputError, match="data_batch_1"):
        open_dataset(batch)


def test_pickle_memory_and_time_bombs(write_folder):
    """A memo index of four billion, an array of a terabyte, and nested tuples as a key, whose hash would take for
    ever.
    """
    assert cifar.read_plain_pickle(b"\x80\x02}r\xff\xff\xff\xff.", "x") == {}
    nested = b"\x80\x02}(U\x01a" + b"".join(b"q\x01h\x01\x86" for _ in range(100)) + b"K\x01u."
    with pytest.raises(InputError):
        cifar.read_plain_pickle(nested, "x")
    nested_key = b"\x80\x02}(K\x01" + b"".join(b"q\x01h\x01\x86" for _ in range(100)) + b"K\x01u."
    with pytest.raises(InputError, match="no string"):
        cifar.read_plain_pickle(nested_key, "x")
    huge = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01btRu."
    array = cifar.read_plain_pickle(huge, "x")["data"]
    assert array.size == 0  # nothing was made


def bad(name, entries):
    return pytest.param(old_pickle(entries), name, id=name)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        bad("labels for", [(b"labels", old_list([0, 1, 2])), (b"data", old_array(PIXELS))]),
        bad('no "data"', [(b"labels", old_list([0, 1]))]),
        bad("class numbers", [(b"labels", old_list([b"cat", b"dog"])), (b"data", old_array(PIXELS))]),
        bad("shape", [(b"labels", old_list([0, 1])), (b"data", old_array(PIXELS[:, :3071]))]),
        pytest.param(
            old_pickle([(b"labels", old_list([0, 1])), (b"data", old_array(PIXELS))])[:-900], "pickle", id="cut"
        ),
        pytest.param(b"", "pickle", id="empty"),
    ],
)
def test_bad_batches(write_folder, published, content, words):
    out, _ = published
    out["data_batch_4"] = content
    with pytest.raises(InputError, match=words) as caught:
        open_dataset(write_folder(out))
    assert "data_batch_4" in str(caught.value)


def test_labels_beyond_the_class_names(write_folder, published):
    out, _ = published
    out["data_batch_1"], *_ = batch(0, labels=(9, 0, 1, 2))
    with pytest.raises(InputError, match="names 4 classes, labels go up to 9"):
        open_dataset(write_folder(out))


def test_a_missing_batch(write_folder, published):
    out, _ = published
    del out["data_batch_3"]
    with pytest.raises(InputError, match="data_batch_3 is missing"):
        open_dataset(write_folder(out))
