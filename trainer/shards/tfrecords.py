"""Read TensorFlow's TFRecord files of tf.train.Example, without TensorFlow.

Our own, since the `tfrecord` package (1.14.6) ignores the checksums, does not report positions of records and
imports torch. A record is its length (8 bytes), the length's checksum, the data and the data's checksum; checksums are
CRC-32C, rotated and shifted. Needs the `tfrecord` extra (google-crc32c).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config import UsageError

BYTES, INTEGERS = 1, 3  # field numbers of tf.train.Feature's lists


def record_places(path: Path) -> Iterator[tuple[int, int]]:
    """Offset and size of the data of each record; reads the lengths only.

    Raises:
        UsageError: if this is not a TFRecord file or it ends within a record.
    """
    offset, end = 0, path.stat().st_size
    with path.open("rb") as stream:
        while offset < end:
            stream.seek(offset)
            header = stream.read(12)
            if len(header) < 12 or struct.unpack("<I", header[8:])[0] != _masked_crc(header[:8]):
                raise UsageError(f"{path}: no TFRecord at byte {offset}; give whole, uncompressed TFRecord files")
            (size,) = struct.unpack("<Q", header[:8])
            if offset + size + 16 > end:
                raise UsageError(f"{path}: ends within the record at byte {offset}; copy it again")
            yield offset + 12, size
            offset += size + 16


def read_example(path: Path, offset: int, size: int) -> dict[str, list[Any]]:
    """The features of one tf.train.Example; lists of floats are left empty.

    Raises:
        ValueError: if the record is damaged.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
        if stream.read(4) != struct.pack("<I", _masked_crc(data)):
            raise ValueError("the record's checksum differs")
    found = {}
    try:
        for _, features in _fields(data):
            for _, entry in _fields(features):
                pair = dict(_fields(entry))
                kind, values = next(_fields(pair.get(2, b"")), (BYTES, b""))
                found[pair[1].decode()] = list(_values(kind, values))
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("the record is no tf.train.Example") from None
    return found


def _values(kind: int, values: bytes) -> Iterator[bytes | int]:
    for _, value in _fields(values):
        if kind == INTEGERS and isinstance(value, bytes):  # packed: one field holds all numbers
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                yield number
        elif kind in (BYTES, INTEGERS):
            yield value


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer; a varint's value is an int."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            number, position = _varint(message, position)
            yield tag >> 3, number
        else:
            size, position = _varint(message, position) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], position)
            yield tag >> 3, message[position : position + size]
            position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    number = shift = 0
    while True:
        byte = message[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position


def _masked_crc(data: bytes) -> int:
    try:
        import google_crc32c
    except ImportError:
        raise UsageError("TFRecords need one more package: pip install 'heatmap-sweeps[tfrecord]'") from None
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
