"""Broken and hostile input: one line that names the file and the fix, and nothing done."""

import io
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from prunefast.data import native, open_dataset
from prunefast.errors import InputError, MachineError


def message_of(path, **options):
    with pytest.raises(InputError) as caught:
        open_dataset(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def tar_with(*members):
    """A tar of (name, data, type, linkname) as the standard library writes it, unchecked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data, kind, link in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, link
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_paths_that_lead_nowhere(tmp_path, write_folder):
    assert "no such file" in message_of(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "is empty" in message_of(tmp_path / "empty")
    (tmp_path / "zero.tar").write_bytes(b"")
    assert "0 bytes" in message_of(tmp_path / "zero.tar")
    (tmp_path / "text.txt").write_text("hello " * 1000)
    assert "none of the formats" in message_of(tmp_path / "text.txt")
    (tmp_path / "hello.gz").write_bytes(__import__("gzip").compress(b"hello" * 1000))
    assert "not a tar" in message_of(tmp_path / "hello.gz")
    os.mkfifo(tmp_path / "pipe")
    assert "neither" in message_of(tmp_path / "pipe")
    for wrong in ("", 3, None, "a\0b", b"bytes"):
        with pytest.raises(InputError, match="path"):
            open_dataset(wrong)


def test_folder_of_other_files_tells_what_is_there(write_folder):
    root = write_folder({"a.txt": b"x", ".hidden.jpg": b"x"})
    assert ".jpg" in message_of(root)  # which names images have


def test_a_run_is_no_data_set(tmp_path, write_folder, files):
    path = write_folder(files)
    (tmp_path / "run").mkdir()
    open_dataset(path).save_items(tmp_path / "run" / "items.parquet")
    assert f"is a run on (or unfinished latents of) {path}, not a data set" in message_of(tmp_path / "run")


def test_arguments(write_folder, files):
    root = write_folder(files)
    for options, word in [
        ({"on_error": "ignore"}, "on_error"),
        ({"split": "val"}, "train, test"),
        ({"split": ""}, "split"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 2.5}, "image_size"),
        ({"image_size": True}, "image_size"),
    ]:
        with pytest.raises(InputError, match=word):
            open_dataset(root, **options)
    with pytest.raises(InputError, match="no train/"):
        open_dataset(root / "train" / "cat", split="train")


def test_unreadable_folder(write_folder, files, monkeypatch):
    root = write_folder(files)
    real = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"dog.*permission"):
        open_dataset(root)


def test_unreadable_file(write_folder, files, monkeypatch):
    root = write_folder(files)
    real = os.open

    def refuse(path, *rest, **more):
        if str(path).endswith("dog/1.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"dog/1.png.*permission"):
        open_dataset(root)
    data = open_dataset(root, on_error="skip")
    assert [key for key, _ in data.skipped] == ["train/dog/1.png"]


def test_a_failing_disk_is_not_the_inputs_fault(write_folder, files, monkeypatch):
    data = open_dataset(write_folder(files))
    monkeypatch.setattr(native, "decodes_jpeg", lambda: False)  # the general way, which has the words for errors
    real = os.pread

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(MachineError, match="Input/output error"):
        data.images([0])
    monkeypatch.setattr(os, "pread", real)
    data.images([0])


BROKEN = {
    "text named jpg": (b"this is no image\n" * 20, "is not an image"),
    "zero bytes": (b"", "is empty"),
    "only the magic": (b"\xff\xd8\xff\xe0", "cut off"),
    "rubbish after the magic": (b"\xff\xd8" + bytes(range(256)) * 4, ""),
    "png cut in its header": (b"\x89PNG\r\n\x1a\n\0\0\0\rIH", ""),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_broken_headers(tmp_path, write_folder, files, name, kind):
    content, words = BROKEN[name]
    members = {"cat/0.jpg": files["train/cat/0.jpg"], "cat/1.jpg": content, "dog/0.jpg": files["train/dog/0.jpg"]}
    path = pack(tmp_path, write_folder, members, kind)
    text = message_of(path)
    assert "cat/1.jpg" in text
    assert words in text
    assert "on_error='skip'" in text
    data = open_dataset(path, on_error="skip")
    assert list(data.keys) == ["cat/0.jpg", "dog/0.jpg"]
    assert data.labels.tolist() == [0, 1]
    assert [key for key, _ in data.skipped] == ["cat/1.jpg"]
    assert open_dataset(path, on_error="skip").skipped == data.skipped  # kept in the cache with the table


def pack(tmp_path, write_folder, members, kind):
    if kind == "folder":
        return write_folder(members)
    path = tmp_path / f"x.{kind}"
    if kind == "tar":
        path.write_bytes(tar_with(*((name, data, tarfile.REGTYPE, "") for name, data in members.items())))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_truncated_body(tmp_path, write_folder, files, kind):
    """The header is whole, so opening is fine; reading names the file, and "skip" finds it at the opening."""
    jpeg = files["train/cat/0.jpg"]
    members = {"cat/0.jpg": jpeg, "cat/1.jpg": jpeg[: len(jpeg) * 3 // 4], "dog/0.jpg": jpeg}
    path = pack(tmp_path, write_folder, members, kind)
    data = open_dataset(path)
    assert len(data) == 3
    for read in (lambda: data.images([0, 1, 2]), lambda: data.image(1), lambda: list(data.batches(batch_size=2))):
        with pytest.raises(InputError, match=r"cat/1\.jpg.*skip"):
            read()
    data.images([0, 2])
    skipping = open_dataset(path, on_error="skip")
    assert list(skipping.keys) == ["cat/0.jpg", "dog/0.jpg"]
    assert skipping.skipped[0][0] == "cat/1.jpg"
    skipping.images([0, 1])
    assert skipping.fingerprint != data.fingerprint


def test_nothing_left_after_skipping(write_folder):
    assert "no image can be read" in message_of(write_folder({"a.jpg": b"no", "b.png": b"no"}), on_error="skip")


def test_images_beside_class_folders(write_folder, files):
    jpeg = files["train/cat/0.jpg"]
    root = write_folder({"cat/0.jpg": jpeg, "dog/0.jpg": jpeg, "stray.jpg": jpeg})
    text = message_of(root)
    assert "stray.jpg" in text
    assert "class folders" in text
    data = open_dataset(root, on_error="skip")
    assert data.labels.tolist() == [0, 1]
    assert data.skipped[0][0] == "stray.jpg"


def test_names_that_are_not_utf8(write_folder, files):
    root = write_folder({"a/0.jpg": files["train/cat/0.jpg"]})
    with open(os.fsencode(root) + b"/a/\xff.jpg", "wb") as file:
        file.write(files["train/cat/0.jpg"])
    with pytest.raises(InputError, match="UTF-8"):
        open_dataset(root)
    data = open_dataset(root, on_error="skip")
    assert list(data.keys) == ["a/0.jpg"]
    assert len(data.skipped) == 1


def test_dangling_link_and_pipe_in_a_folder(write_folder, files):
    root = write_folder({"a.jpg": files["train/cat/0.jpg"]})
    (root / "b.jpg").symlink_to(root / "nothing")
    assert "b.jpg" in message_of(root)
    (root / "b.jpg").unlink()
    os.mkfifo(root / "b.jpg")
    assert "pipe" in message_of(root)  # and does not wait for somebody to write into it


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "C:/x.jpg", "..\\x.jpg"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_that_escape(tmp_path, write_folder, files, name, kind):
    if kind == "tar" and "\\" in name:
        pytest.skip("a backslash is an ordinary character in a tar")
    path = pack(tmp_path, write_folder, {"a.jpg": files["train/cat/0.jpg"], name: files["train/cat/0.jpg"]}, kind)
    text = message_of(path)
    assert "outside the archive" in text
    assert "outside the archive" in message_of(path, on_error="skip")


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (("a.jpg", b"", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (("a.jpg", b"", tarfile.LNKTYPE, "b.jpg"), "link"),
        (("a.jpg", b"", tarfile.CHRTYPE, ""), "device"),
        (("a.jpg", b"", tarfile.FIFOTYPE, ""), "device"),
    ],
)
def test_links_and_devices_in_a_tar(tmp_path, files, member, word):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_with(("b.jpg", files["train/cat/0.jpg"], tarfile.REGTYPE, ""), member))
    text = message_of(path)
    assert word in text
    assert "a.jpg" in text


def test_link_in_a_zip(tmp_path, files):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert "link" in message_of(path)


def resealed(raw, at=0):
    """A tar header with its checksum made right again."""
    raw = bytearray(raw)
    raw[at + 148 : at + 156] = b"        "
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    return bytes(raw)


@pytest.mark.parametrize(
    "size",
    [
        b"77777777777\0",
        b"\x80" + b"\0" * 3 + struct.pack(">Q", 1 << 62),
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"-0000000001\0",
        b"zzzzzzzzzzz\0",
    ],
)
def test_tar_headers_that_lie_about_sizes(tmp_path, files, size):
    raw = bytearray(tar_with(("a.jpg", files["train/cat/0.jpg"], tarfile.REGTYPE, "")))
    raw[124:136] = size
    path = tmp_path / "x.tar"
    path.write_bytes(resealed(raw))
    text = message_of(path)
    assert "byte 0" in text


def test_tar_broken_in_the_middle_is_not_silently_cut(tmp_path, files):
    jpeg = files["train/cat/0.jpg"]
    raw = bytearray(tar_with(*((f"{k}.jpg", jpeg, tarfile.REGTYPE, "") for k in range(4))))
    second = 512 + -(-len(jpeg) // 512) * 512
    raw[second + 20] ^= 1
    path = tmp_path / "x.tar"
    path.write_bytes(raw)
    assert f"byte {second}" in message_of(path)
    path.write_bytes(raw[: second - 100])
    assert "cut short" in message_of(path)


def test_compressed_tar_cut_short(tmp_path, files):
    import gzip
    import lzma

    raw = tar_with(*((f"{k}.jpg", files["train/cat/0.jpg"], tarfile.REGTYPE, "") for k in range(9)))
    for suffix, packed in (("gz", gzip.compress(raw)), ("xz", lzma.compress(raw))):
        path = tmp_path / f"x.tar.{suffix}"
        path.write_bytes(packed[: len(packed) // 2])
        assert "expanded" in message_of(path)


def test_decompression_bomb_of_a_tar(tmp_path, files, monkeypatch):
    import lzma

    from prunefast.data import expand

    monkeypatch.setattr(expand, "_BOMB_BYTES", 1 << 20)
    raw = tar_with(
        ("a.jpg", files["train/cat/0.jpg"], tarfile.REGTYPE, ""), ("zeros", bytes(32 << 20), tarfile.REGTYPE, "")
    )
    path = tmp_path / "x.tar.xz"
    path.write_bytes(lzma.compress(raw, preset=0))
    cache = tmp_path / "cache"
    assert "bomb" in message_of(path, cache_dir=cache)
    assert not [name for name in cache.rglob("*") if name.suffix == ".tar"]


def zip_bytes(**changes):
    """One deflated member "a.jpg"; `changes` overwrite fields of its central directory entry (offset: (format,
    value)).
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(20_000))
    raw = bytearray(buffer.getvalue())
    entry = raw.index(b"PK\x01\x02")
    for offset, (code, value) in changes.items():
        struct.pack_into(code, raw, entry + int(offset[1:]), value)
    return bytes(raw)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"_24": ("<I", 0xFFFFFFF0)}, "claims"),  # expanded size
        ({"_20": ("<I", 0x7FFFFFFF)}, "outside"),  # packed size
        ({"_42": ("<I", 0x7FFFFFFF)}, "outside|zip"),  # place of the local header
        ({"_10": ("<H", 9)}, "method"),
        ({"_8": ("<H", 1)}, "encrypted"),
        ({"_24": ("<I", 19_999)}, "another size|size"),  # less than comes out
        ({"_24": ("<I", 20_001)}, "another size|size"),
    ],
)
def test_zip_directories_that_lie(tmp_path, changes, word):
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes(**changes))
    if "another" in word:
        with pytest.raises(InputError):
            open_dataset(path, on_error="skip")  # reads it whole
    else:
        with pytest.raises(InputError, match=word):
            open_dataset(path)


def test_image_bomb(write_folder, encode):
    """A PNG and a JPEG header that promise gigapixels are refused before any memory is taken."""
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
    )
    jpeg = bytearray(encode(np.zeros((16, 16, 3), np.uint8)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    for name, content in (("a.png", png), ("a.jpg", bytes(jpeg))):
        root = write_folder({name: content}, "bomb-" + name)
        assert "bomb" in message_of(root)


def test_files_that_change_after_opening(tmp_path, write_folder, files):
    root = write_folder(files)
    data = open_dataset(root)
    (root / "train/cat/0.jpg").write_bytes(files["train/cat/0.jpg"] + b"more")
    with pytest.raises(InputError, match="changed since"):
        data.images([0])
    (root / "train/cat/0.jpg").write_bytes(files["train/cat/0.jpg"][:-3])
    with pytest.raises(InputError, match="cut short or changed"):
        data.images([0])
    (root / "train/cat/0.jpg").unlink()
    with pytest.raises(InputError, match="no such file"):
        data.images([0])
    path = pack(tmp_path, write_folder, {"a/0.jpg": files["train/cat/0.jpg"]}, "tar")
    packed = open_dataset(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="changed since"):
        packed.images([0])
    path = pack(
        tmp_path, write_folder, {"a/0.jpg": files["train/cat/0.jpg"], "a/1.jpg": files["train/cat/0.jpg"]}, "zip"
    )
    packed = open_dataset(path)
    packed.images([0])  # now the file is open
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match="cut short"):  # a memory map would kill the process here
        packed.images([0, 1])


def test_zip_member_without_a_name(tmp_path, files):
    """The standard library cuts names at a zero byte, and its is_dir() fails on what is left."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", files["train/cat/0.jpg"])
        archive.writestr("b.jpg", files["train/cat/0.jpg"])
    path.write_bytes(path.read_bytes().replace(b"b.jpg", b"\0.jpg"))
    assert list(open_dataset(path).keys) == ["a.jpg"]
