"""Tar archives: one walk over the headers gives name, place and size of every member.

The walk is ours because it must be strict: the standard library's stops without a word at a broken header in the
middle, and drops the rest. Read are ustar, GNU (long names, base-256 numbers) and pax headers; formats: POSIX.1-1988
and POSIX.1-2001, GNU tar manual.
"""

import os
import posixpath

import numpy as np

from prunefast.data.listing import MAX_LABEL_FILE_BYTES, Listing, check_member_name, is_label_file, last_of_each_name
from prunefast.data.storage import open_for_reading, read_exactly
from prunefast.errors import InputError

BLOCK = 512
_WINDOW = 1 << 20  # headers of small members lie close together: one read fetches hundreds
_MAX_EXTENSION = 1 << 20  # a long name or pax header; real ones have some hundred bytes
_REGULAR = b"\0" + b"07"  # type flags of plain files
_LINKS = b"12"
_DEVICES = b"346"


def is_tar_header(block: bytes) -> bool:
    """Whether 512 bytes are a tar header, by its checksum: the sum of all bytes with the checksum itself as blanks."""
    if len(block) < BLOCK or not any(block):
        return False
    try:
        stored = int(block[148:156].rstrip(b" \0").strip() or b"-1", 8)
    except ValueError:
        return False
    rest = block[:148] + b"        " + block[156:BLOCK]
    if stored == sum(rest):
        return True
    return stored == sum(byte - 256 if byte > 127 else byte for byte in rest)  # some old writers summed signed chars


def _number(field: bytes) -> int:
    """Octal text, or GNU's base 256 where the first byte is 0x80 (0xff: negative)."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value - (1 << 8 * (len(field) - 1)) if field[0] == 0xFF else value
    text = field.split(b"\0", 1)[0].strip()
    return int(text, 8) if text else 0


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8")


def _pax(data: bytes) -> dict[str, str]:
    """Records ``"%d %s=%s\\n"``, the number being the length of the whole record."""
    values = {}
    position = 0
    while position < len(data) and data[position] != 0:
        blank = data.index(b" ", position, position + 20)
        length = int(data[position:blank])
        record = data[blank + 1 : position + length]
        if length <= blank + 1 - position or not record.endswith(b"\n"):
            raise ValueError("pax record")
        key, separator, value = record[:-1].partition(b"=")
        if not separator:
            raise ValueError("pax record")
        name = key.decode("utf-8")
        if name in ("path", "linkpath", "size", "mtime") or name.startswith("GNU.sparse"):
            values[name] = value.decode("utf-8")
        position += length
    return values


class _Window:
    """Positional reads with some read-ahead."""

    def __init__(self, descriptor: int, size: int, path: str):
        self.descriptor, self.size, self.path = descriptor, size, path
        self.start, self.data = 0, b""

    def block(self, offset: int) -> bytes:
        begin = offset - self.start
        if begin < 0 or begin + BLOCK > len(self.data):
            # a sparse walk over large members needs no window, a dense one does
            count = _WINDOW if offset - self.start < 2 * _WINDOW else BLOCK
            self.start = offset
            self.data = read_exactly(self.descriptor, min(count, self.size - offset), offset, self.path)
            begin = 0
        return self.data[begin : begin + BLOCK]


def list_tar(path: str, shown: str | None = None) -> Listing:
    """All plain files of an uncompressed tar. `shown` is the name for error messages (of the archive this was
    expanded from).
    """
    shown = shown or path
    descriptor = open_for_reading(path)
    try:
        return _walk(descriptor, os.fstat(descriptor).st_size, path, shown)
    finally:
        os.close(descriptor)


def _walk(descriptor: int, size: int, path: str, shown: str) -> Listing:
    names: list[str] = []
    offsets: list[int] = []
    lengths: list[int] = []
    times: list[int] = []
    label_files: dict[str, bytes] = {}
    window = _Window(descriptor, size, shown)
    position = 0
    shared: dict[str, str] = {}  # pax headers that hold until changed
    own: dict[str, str] = {}  # those of the next member
    while position + BLOCK <= size:
        block = window.block(position)
        if block.count(0) == BLOCK:  # the end of the archive, or the padding after it
            break
        if not is_tar_header(block):
            raise InputError(
                f"{shown}: broken tar header at byte {position}; the archive is damaged, copy or pack it again"
            )
        kind = block[156:157]
        data = position + BLOCK
        try:
            length = _number(block[124:136])
            if "size" in own and kind not in b"xgLK":
                length = int(own["size"])
            mtime_ns = round(float(own["mtime"]) * 1e9) if "mtime" in own else _number(block[136:148]) * 10**9
            name = own.get("path") or shared.get("path")
            if name is None:
                name = _text(block[:100])
                if block[257:263] == b"ustar\0" and block[345] != 0:
                    name = f"{_text(block[345:500])}/{name}"
        except UnicodeDecodeError:
            raise InputError(
                f"{shown}: a member name at byte {position} is not UTF-8; rename the file and pack again"
            ) from None
        except (ValueError, OverflowError):
            raise InputError(
                f"{shown}: broken tar header at byte {position}; the archive is damaged, copy or pack it again"
            ) from None
        if kind in _LINKS or kind in _DEVICES or kind == b"5":
            length = 0  # no data follows, whatever the header says
        if length < 0 or data + length > size:
            raise InputError(
                f"{shown}: the header at byte {position} claims {length:,} bytes, {size - data:,} are left; "
                "the archive was cut short, copy or download it again"
            )
        if kind in b"xgLK":
            if length > _MAX_EXTENSION:
                raise InputError(
                    f"{shown}: an extended header of {length:,} bytes at byte {position}; the archive is damaged"
                )
            content = read_exactly(descriptor, length, data, shown)
            try:
                if kind == b"x":
                    own.update(_pax(content))
                elif kind == b"g":
                    shared.update(_pax(content))
                elif kind == b"L":
                    own["path"] = _text(content)
            except (ValueError, OverflowError):
                raise InputError(
                    f"{shown}: broken extended header at byte {position}; pack the archive again"
                ) from None
        else:
            sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in own)
            own = {}
            if name.strip("/"):  # "/" alone is the folder that was packed, as tarfile writes it
                check_member_name(shown, name)
            name = posixpath.normpath(name)
            if kind in _DEVICES:
                raise InputError(
                    f"{shown}: member {name!r} is a device or pipe, not a file; pack the archive again without it"
                )
            if kind in _LINKS:
                raise InputError(
                    f"{shown}: member {name!r} is a link; pack the archive again with tar --dereference "
                    "--hard-dereference"
                )
            if sparse:
                raise InputError(f"{shown}: member {name!r} is a sparse file; pack the archive again without --sparse")
            if kind in _REGULAR and not block[:100].split(b"\0", 1)[0].endswith(b"/"):
                if is_label_file(name) and length <= MAX_LABEL_FILE_BYTES:
                    label_files[name] = read_exactly(descriptor, length, data, shown)
                names.append(name)
                offsets.append(data)
                lengths.append(length)
                times.append(mtime_ns)
        position = data + -(-length // BLOCK) * BLOCK
    else:
        # some writers leave the end mark out; a file that ends inside a block was cut
        if position != size:
            raise InputError(f"{shown}: ends inside a block; the archive was cut short, copy or download it again")
    if times and max(abs(time) for time in times) >= 1 << 62:
        times = [0] * len(times)
    listing = Listing(
        names=names,
        length=np.array(lengths, dtype=np.int64),
        containers=[path],
        container=np.zeros(len(names), dtype=np.int32),
        offset=np.array(offsets, dtype=np.int64),
        mtime_ns=np.array(times, dtype=np.int64),
        label_files=label_files,
    )
    rows = last_of_each_name(names)
    return listing if rows is None else listing.take(rows)
