"""Damage in a piece of a large value: it is named, and nothing else is hit by it."""

import math
import random
import shutil
from itertools import pairwise

import pytest

from kvsage import CorruptionError, LMDBStore
from kvsage.log.format import ENTRY_KIND_AT, NODE, PACK
from tests.support.chunks import chunks_of, conversation, sentence

DAMAGE = 40  # bytes: more than the one bit that a repair puts right


@pytest.fixture
def store_options(store_options):
    return store_options | {"upkeep_interval": math.inf, "content_bytes_min": 64}


@pytest.fixture
def values():
    chance = random.Random(5)
    talk = conversation(chance, 150)
    return {
        "talk": talk,
        "fork": [*talk[:90], *conversation(chance, 30)],
        "text": sentence(chance, 800),
        "small": "in its record",
    }


class Log:
    """The only file of a log, to be damaged."""

    def __init__(self, path, chunks):
        (self.path,) = (path / "log").glob("*.seg")
        self.whole = self.path.read_bytes()
        self.chunks = chunks
        self.entries = sorted({(row.offset, row.length) for row in chunks.rows.values()})

    def damage(self, offset, length):
        data = bytearray(self.whole)
        data[offset + length - DAMAGE : offset + length] = bytes(DAMAGE)
        assert data != self.whole
        self.path.write_bytes(data)

    def kind(self, offset):
        return self.whole[offset + ENTRY_KIND_AT]

    def hit(self, key, offset):
        return any(self.chunks.rows[one].offset == offset for one in self.chunks.under(key))


@pytest.fixture
def log(tmp_path, new_store, values):
    with new_store() as store:
        for key, value in values.items():
            store.save(key, value)
        chunks = chunks_of(store)
    found = Log(tmp_path / "store", chunks)
    assert {PACK, NODE} <= {found.kind(offset) for offset, _ in found.entries}
    return found


def test_it_is_named_and_other_keys_are_read(log, new_store, values):
    for offset, length in log.entries[::2]:
        log.damage(offset, length)
        hit = {key for key in values if log.hit(key, offset)}
        assert hit
        with new_store(readonly=True) as store:
            for key, value in values.items():
                if key not in hit:
                    assert store.load(key) == value
                    continue
                with pytest.raises(CorruptionError) as caught:
                    store.load(key)
                assert (caught.value.segment, caught.value.offset) == (1, offset)
            assert offset in {problem.offset for problem in store.verify(deep=True).problems}


def test_other_parts_of_the_same_list_are_read(log, new_store, values):
    """All but what lies under the damaged node, or in the damaged pack."""
    talk, read = values["talk"], set()
    for offset, length in log.entries:
        if not log.hit("talk", offset):
            continue
        log.damage(offset, length)
        with new_store(readonly=True) as store:
            places = set()
            for start, stop in pairwise(range(0, len(talk) + 1, 5)):
                try:
                    assert store.load_range("talk", start, stop) == talk[start:stop]
                    read.add(start)
                except CorruptionError as error:
                    places.add((error.segment, error.offset))
        assert places == {(1, offset)}
    assert len(read) == len(talk) // 5, "no part of it is in every entry"


def test_another_save_stores_it_anew(log, new_store, values):
    offset, length = log.entries[0]
    log.damage(offset, length)
    with new_store() as store:
        with pytest.raises(CorruptionError):
            store.load("talk")
        store.save("talk", values["talk"])
        assert store.load("talk") == values["talk"]
    with new_store() as store:
        assert store.load("talk") == values["talk"]


def test_repair_gives_up_the_keys_that_need_it(log, tmp_path, new_store, values):
    for offset, length in log.entries[::3]:
        log.damage(offset, length)
        copied = shutil.copytree(tmp_path / "store", tmp_path / f"at {offset}")
        report = LMDBStore.repair(copied)
        lost = {key for key in values if log.hit(key, offset)}
        assert set(report.keys_lost) == lost
        with new_store(copied.name) as store:
            assert dict(store.items()) == {k: v for k, v in values.items() if k not in lost}
            chunks_of(store)
            assert store.verify(deep=True).problems == ()
