"""Rows of the contents: where a content lies, how long it is raw, and how many keys refer to it."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from kvsage.index.keydir import StructError, damaged

CONTENT_ROW = Struct("<IIIQQQ")
assert CONTENT_ROW.size == 36


class ContentRow(NamedTuple):
    """One content, by its content key (hash and number)."""

    segment: int
    offset: int
    length: int
    seq: int
    raw_length: int
    references: int


def decode_content_row(data: bytes) -> ContentRow:
    """The row in ``data``.

    Raises:
        CorruptionError: a row of another length.
    """
    try:
        return ContentRow._make(CONTENT_ROW.unpack(data))
    except StructError as error:
        raise damaged(error) from error


def encode_content_row(row: ContentRow) -> bytes:
    """The bytes of a row."""
    return CONTENT_ROW.pack(*row)
