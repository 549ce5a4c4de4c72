"""Damage in a content is reported where it lies, not where it is referred to."""

import os
from pathlib import Path

import pytest

from kvsage import CorruptionError, LMDBStore


def test_load_and_get_name_the_place(tmp_path):
    noise = os.urandom(6000)
    with LMDBStore(tmp_path / "s") as store:
        store.save("small", 1)
        address = store.content.put(noise)
        store.save("large", noise)
        store._engine.raw_cache.clear()
        segment = next(Path(tmp_path, "s", "log").glob("*.seg"))
        data = bytearray(segment.read_bytes())
        at = data.find(noise)
        data[at + 100] ^= 1
        segment.write_bytes(data)
        for read in (lambda: store.load("large"), lambda: store.content.get(address)):
            with pytest.raises(CorruptionError) as caught:
                read()
            assert caught.value.segment == 1
            assert at - 100 < caught.value.offset < at
        assert store.load("small") == 1
