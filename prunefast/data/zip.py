"""Zip archives: the central directory gives names, sizes and places; stored members are read by offset, deflated ones
inflated.
"""

import os
import stat
import struct
import zipfile

import numpy as np

from prunefast.data.listing import MAX_LABEL_FILE_BYTES, Listing, check_member_name, is_label_file, last_of_each_name
from prunefast.data.storage import inflate, open_for_reading, read_exactly
from prunefast.errors import InputError, PrunefastError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field
_MAX_RATIO = 1040  # deflate cannot shrink further: 1032 to 1 and some bytes


def list_zip(path: str) -> Listing:
    """All files of a zip. Raises InputError for members that escape, are links, encrypted, or packed another way than
    stored/deflated.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (MemoryError, PrunefastError):
        raise
    except Exception as error:  # the standard library fails on hostile directories in many ways
        raise InputError(
            f"{path}: is not a readable zip ({' '.join(str(error).split())[:120]}); copy or download it again"
        ) from None
    descriptor = open_for_reading(path)
    try:
        return _places(path, descriptor, members)
    finally:
        os.close(descriptor)


def _places(path: str, descriptor: int, members: list[zipfile.ZipInfo]) -> Listing:
    size = os.fstat(descriptor).st_size
    names: list[str] = []
    offsets: list[int] = []
    lengths: list[int] = []
    expanded: list[int] = []
    checks: list[int] = []
    label_files: dict[str, bytes] = {}
    for member in members:
        name = member.filename.replace("\\", "/")
        what = f"{path}: member {name!r}"
        check_member_name(path, name)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{what} is a link; pack the archive again with the files themselves")
        if not name or name.endswith("/"):
            continue
        if member.flag_bits & 0x1:
            raise InputError(f"{what} is encrypted; unpack the archive and open the folder")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{what} is packed by method {member.compress_type}; zip it again stored or deflated")
        stored = member.compress_type == zipfile.ZIP_STORED
        if member.header_offset < 0 or member.header_offset + 30 > size:
            raise InputError(f"{what} lies outside the file; the archive was cut short, copy or download it again")
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(
            read_exactly(descriptor, _LOCAL_HEADER.size, member.header_offset, path)
        )
        begin = member.header_offset + 30 + name_length + extra_length
        if signature != b"PK\x03\x04" or member.compress_size < 0 or begin + member.compress_size > size:
            raise InputError(f"{what} lies outside the file or has a broken header; copy or download the archive again")
        lies = (
            member.file_size != member.compress_size
            if stored
            else member.file_size > _MAX_RATIO * (member.compress_size + 1)
        )
        if lies:
            raise InputError(
                f"{what} claims {member.file_size:,} bytes, which {member.compress_size:,} packed ones cannot be; "
                "do not use it"
            )
        if is_label_file(name) and member.file_size <= MAX_LABEL_FILE_BYTES:
            data = read_exactly(descriptor, member.compress_size, begin, path)
            label_files[name] = data if stored else inflate(data, member.file_size, what)
        names.append(name)
        offsets.append(begin)
        lengths.append(member.compress_size)
        expanded.append(-1 if stored else member.file_size)
        checks.append(member.CRC)
    listing = Listing(
        names=names,
        length=np.array(lengths, dtype=np.int64),
        containers=[path],
        container=np.zeros(len(names), dtype=np.int32),
        offset=np.array(offsets, dtype=np.int64),
        expanded=np.array(expanded, dtype=np.int64),
        mtime_ns=np.array(checks, dtype=np.int64),  # a checksum of the content: better than a time
        label_files=label_files,
    )
    rows = last_of_each_name(names)
    return listing if rows is None else listing.take(rows)
