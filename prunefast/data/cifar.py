"""CIFAR-10 and CIFAR-100 as published: python batches (pickles) and binary batches, in a folder or a tar.

The pickles are not unpickled. A small interpreter runs the few opcodes that such a file is made of (no import, no call
of anything), so a file that carries code is refused before anything of it runs, and the place of the pixels in the file
is known: images are read by offset as from everywhere else.
Formats: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefast.data.cache import digest
from prunefast.data.listing import Listing, choose_split
from prunefast.data.storage import explain_read_error, open_for_reading, read_exactly
from prunefast.errors import InputError

SIDE = 32
ROW = 3 * SIDE * SIDE  # bytes of an image: 1024 red, 1024 green, 1024 blue
_MAX_BATCH_BYTES = 1 << 30  # the largest published has 154 MB
_TEN = [f"data_batch_{k}" for k in range(1, 6)]


@dataclass
class _Kind:
    """One published form: files of each split, the file of class names, bytes of label before an image (0: pickle)."""

    splits: dict[str, list[str]]
    names: str
    label_bytes: int


_KINDS = [
    _Kind({"train": _TEN, "test": ["test_batch"]}, "batches.meta", 0),
    _Kind({"train": [f"{name}.bin" for name in _TEN], "test": ["test_batch.bin"]}, "batches.meta.txt", 1),
    _Kind({"train": ["train"], "test": ["test"]}, "meta", 0),
    _Kind({"train": ["train.bin"], "test": ["test.bin"]}, "fine_label_names.txt", 2),
]


def _kind_of(names: set[str]) -> _Kind | None:
    """The published form that has these files; CIFAR-100's plain names count only with its meta file."""
    for kind in _KINDS:
        files = {name for split in kind.splits.values() for name in split}
        if files & names and (kind.names in names or "_batch" in min(files)):
            return kind
    return None


def list_batch_files(path: str) -> Listing | None:
    """The batch files lying in a folder, or in the one sub-folder that the published archives have; None if there are
    none.
    """
    for folder in (
        path,
        *(
            os.path.join(path, name)
            for name in ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")
        ),
    ):
        try:
            with os.scandir(folder) as entries:
                files = {entry.name: entry.path for entry in entries if entry.is_file()}
        except FileNotFoundError:
            continue
        except OSError as error:
            raise explain_read_error(error, folder) from None
        kind = _kind_of(set(files))
        if kind is not None:
            known = [*(name for split in kind.splits.values() for name in split), kind.names]
            paths = [files[name] for name in known if name in files]
            return Listing(
                names=[os.path.relpath(file, path) for file in paths],
                length=np.array([os.stat(file).st_size for file in paths], dtype=np.int64),
                root=path,
                containers=paths,
                container=np.arange(len(paths), dtype=np.int32),
                offset=np.zeros(len(paths), dtype=np.int64),
            )
    return None


def batch_members(listing: Listing) -> Listing | None:
    """The members of an archive's listing that are CIFAR batches, or None."""
    rows = {os.path.basename(name): row for row, name in enumerate(listing.names)}
    kind = _kind_of(set(rows))
    if kind is None or listing.container is None:
        return None
    known = [*(name for split in kind.splits.values() for name in split), kind.names]
    return listing.take([rows[name] for name in known if name in rows])


def list_cifar(source: str, batches: Listing, split: str | None) -> Listing:
    """The images of a split: keys ``data_batch_1/00000``, labels (CIFAR-100: the fine ones), places of the rows."""
    rows = {os.path.basename(name): row for row, name in enumerate(batches.names)}
    kind = _kind_of(set(rows))
    assert kind is not None
    there = [name for name, files in kind.splits.items() if any(file in rows for file in files)]
    chosen = choose_split(source, there, split)
    names: list[str] = []
    container: list[np.ndarray] = []
    offset: list[np.ndarray] = []
    label: list[np.ndarray] = []
    content: list[str] = []
    for name in there:
        if chosen not in ("all", name):
            continue
        for file in kind.splits[name]:
            if file not in rows:
                raise InputError(f"{source}: {file} is missing; download the data set again")
            row = rows[file]
            what = f"{source}: {file}"
            data = _read(batches, row, what)
            begin, step, labels = _binary(data, kind.label_bytes, what) if kind.label_bytes else _pickled(data, what)
            count = len(labels)
            base = int(batches.offset[row]) if batches.offset is not None else 0
            names += [f"{file}/{k:05}" for k in range(count)]
            assert batches.container is not None
            container.append(np.full(count, batches.container[row], dtype=np.int32))
            offset.append(base + begin + step * np.arange(count, dtype=np.int64))
            label.append(labels)
            content.append(digest(data))
    labels = np.concatenate(label)
    classes = _class_names(source, batches, rows, kind, int(labels.max()) + 1)
    return Listing(
        names=names,
        length=np.full(len(names), ROW, dtype=np.int64),
        containers=batches.containers,
        container=np.concatenate(container),
        offset=np.concatenate(offset),
        layout="chw",
        height=SIDE,
        width=SIDE,
        label=labels,
        classes=classes,
        split=chosen,
        content=" ".join(content),
    )


def _read(batches: Listing, row: int, what: str) -> bytes:
    length = int(batches.length[row])
    if length > _MAX_BATCH_BYTES or (batches.expanded is not None and batches.expanded[row] >= 0):
        raise InputError(f"{what}: is too large or compressed; unpack the archive and open the folder")
    assert batches.container is not None
    assert batches.offset is not None
    descriptor = open_for_reading(batches.containers[int(batches.container[row])])
    try:
        return read_exactly(descriptor, length, int(batches.offset[row]), what)
    finally:
        os.close(descriptor)


def _binary(data: bytes, label_bytes: int, what: str) -> tuple[int, int, np.ndarray]:
    """(offset of the first image, step, labels): rows of label bytes and 3072 pixels; CIFAR-100's second label is the
    fine one.
    """
    step = label_bytes + ROW
    if not data or len(data) % step:
        raise InputError(
            f"{what}: has {len(data):,} bytes, no multiple of {step:,}; it was cut short, download it again"
        )
    labels = np.frombuffer(data, dtype=np.uint8).reshape(-1, step)[:, label_bytes - 1].astype(np.int64)
    return label_bytes, step, labels


def _pickled(data: bytes, what: str) -> tuple[int, int, np.ndarray]:
    batch = read_plain_pickle(data, what)
    pixels = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels", batch.get("fine_labels")) if isinstance(batch, dict) else None
    if not isinstance(pixels, PickledArray) or not isinstance(labels, list):
        raise InputError(f'{what}: has no "data" array and "labels" list; it is not a CIFAR batch, download it again')
    if pixels.dtype != "u1" or len(pixels.shape) != 2 or pixels.shape[1] != ROW or pixels.fortran:
        raise InputError(
            f"{what}: its data have shape {pixels.shape} and type {pixels.dtype!r}, not [N, {ROW}] bytes; download "
            "it again"
        )
    if pixels.size != pixels.shape[0] * ROW or not pixels.shape[0]:
        raise InputError(f"{what}: its data are cut short; download it again")
    if len(labels) != pixels.shape[0]:
        raise InputError(f"{what}: has {len(labels):,} labels for {pixels.shape[0]:,} images; download it again")
    if not all(isinstance(label, int) and 0 <= label < 1 << 16 for label in labels):
        raise InputError(f"{what}: has labels that are no class numbers; download it again")
    return pixels.begin, ROW, np.array(labels, dtype=np.int64)


def _class_names(source: str, batches: Listing, rows: dict[str, int], kind: _Kind, count: int) -> list[str]:
    if kind.names not in rows:
        return [str(k) for k in range(count)]
    what = f"{source}: {kind.names}"
    data = _read(batches, rows[kind.names], what)
    if kind.label_bytes:
        names: Any = data.decode("utf-8", "replace").split()
    else:
        meta = read_plain_pickle(data, what)
        names = meta.get("label_names", meta.get("fine_label_names")) if isinstance(meta, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{what}: has no list of class names; download it again")
    if len(names) < count or len(set(names)) != len(names):
        raise InputError(f"{what}: names {len(set(names))} classes, labels go up to {count - 1}; download it again")
    return names


@dataclass
class PickledArray:
    """An array in a pickle, by its place: bytes [begin, begin + size) of the file."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    fortran: bool = False
    begin: int = 0
    size: int = 0


class _Name:
    """A global that the pickle names. It is compared and never looked up."""

    def __init__(self, name: str):
        self.name = name


@dataclass
class _Bytes:
    """A byte string and where it lies in the file (-1: nowhere as it is)."""

    value: bytes
    begin: int


_ARRAY = {f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")}
_DTYPE = {"numpy dtype"}
_ENCODE = {"_codecs encode"}
_INERT = {"numpy ndarray"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8"}
_BYTE_STRINGS = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "SHORT_BINSTRING", "BINSTRING"}
_MARK = object()


class _Refused(Exception):
    pass


def read_plain_pickle(data: bytes, what: str) -> Any:
    """Dicts, lists, tuples, numbers and strings of a pickle, arrays as `PickledArray`; bytes and str both come out as
    str in dicts and lists.

    Executes nothing. InputError where the pickle names anything but NumPy's array and dtype, or is broken.
    """
    try:
        return _run(data)
    except _Refused as error:
        raise InputError(
            f"{what}: {error}; it was not made by the CIFAR authors and may carry code: do not open it"
        ) from None
    except (MemoryError, InputError):
        raise
    except Exception as error:  # whatever a damaged stream makes of a stack machine
        raise InputError(
            f"{what}: is no readable pickle ({' '.join(str(error).split())[:100]}); download it again"
        ) from None


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        items: list[Any] = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def set_items(target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("items set on what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            key = _plain(key)
            if not isinstance(key, str):
                raise ValueError("a key that is no string")
            target[key] = _plain(value)

    def append(target: Any, items: list[Any]) -> None:
        if not isinstance(target, list):
            raise ValueError("items appended to what is no list")
        target.extend(_plain(item) for item in items)

    argument: Any
    for opcode, argument, position in pickletools.genops(data):
        name = opcode.name
        assert position is not None
        if name in ("PROTO", "FRAME"):
            continue
        if name in _INTEGERS or name in _TEXTS:
            stack.append(argument)
        elif name in _BYTE_STRINGS:
            value = argument.encode("latin-1") if isinstance(argument, str) else argument
            width = {"SHORT_BINBYTES": 2, "SHORT_BINSTRING": 2, "BINBYTES8": 9}.get(name, 5)
            stack.append(_Bytes(value, position + width))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise ValueError("the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name == "LIST":
            stack.append([_plain(item) for item in pop_to_mark()])
        elif name == "DICT":
            pairs = pop_to_mark()
            stack.append({})
            set_items(stack[-1], pairs)
        elif name == "SETITEMS":
            pairs = pop_to_mark()
            set_items(stack[-1], pairs)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            set_items(stack[-1], [key, value])
        elif name == "APPENDS":
            items = pop_to_mark()
            append(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            append(stack[-1], [item])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(_allowed(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_allowed(f"{module} {attribute}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _built(stack[-1], state)
        elif name == "STOP":
            return _plain(stack.pop())
        else:
            raise _Refused(f"its pickle has the instruction {name}, which no CIFAR file has")
    raise ValueError("no end")


def _plain(value: Any) -> Any:
    """What may lie in a dict or list: bytes become str, the rest stays."""
    if isinstance(value, _Bytes):
        return value.value.decode("utf-8", "replace")
    if value is _MARK:
        raise ValueError("a mark where a value should be")
    return value


def _allowed(name: str) -> _Name:
    if name not in _ARRAY | _DTYPE | _ENCODE | _INERT:
        raise _Refused(f"its pickle asks for {name.replace(' ', '.')[:80]!r}")
    return _Name(name)


def _made(function: Any, arguments: Any) -> Any:
    """The stand-in for a call: only arrays, dtypes and the way Python 3 writes bytes into an old pickle."""
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("its pickle calls what is no function of NumPy's")
    if function.name in _ARRAY:
        return PickledArray()
    if function.name in _DTYPE:
        kind = _plain(arguments[0]) if arguments else ""
        return _Name(f"dtype {kind}")
    if function.name in _ENCODE and isinstance(arguments[0], str):
        return _Bytes(arguments[0].encode("latin-1"), -1)
    raise _Refused(f"its pickle calls {function.name.replace(' ', '.')!r}")


def _built(target: Any, state: Any) -> None:
    """The stand-in for __setstate__: (version, shape, dtype, fortran, bytes) of an array; a dtype's byte order does
    not matter here.
    """
    if isinstance(target, _Name) and target.name.startswith("dtype "):
        return
    if not isinstance(target, PickledArray) or not isinstance(state, tuple) or len(state) != 5:
        raise _Refused("its pickle sets the state of what is no array")
    _, shape, dtype, fortran, content = state
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError("an array without a shape")
    if not isinstance(dtype, _Name) or not isinstance(content, _Bytes):
        raise ValueError("an array without bytes")
    if content.begin < 0:
        raise ValueError("pixels written as text; save it with protocol 3 or later")
    target.shape, target.dtype = shape, dtype.name.removeprefix("dtype ")
    target.fortran = bool(fortran) and len([side for side in shape if side > 1]) > 1
    target.begin, target.size = content.begin, len(content.value)
