"""Recovery from a checkpoint gives the very index that the log alone gives, or does not use it."""

import math
import os
import random
import shutil

import pytest

from kvsage import LMDBStore
from kvsage.engine import compaction, rebuild
from kvsage.engine.pace import UNPACED
from kvsage.errors import CorruptionError
from kvsage.index.env import NAMES
from kvsage.index.segments import DELETIONS_KEY, META_KEY, decode_meta, listed_segments
from kvsage.log.format import FileKind

SMALL = {"segment_bytes_max": 1 << 16, "content_bytes_min": 1024, "upkeep_interval": math.inf}
NAMED = {name.encode() for name in NAMES}
TEXTS = [f"{number} what is stored once, however many keys hold it " * 30 for number in range(6)]


@pytest.fixture
def open_(new_store):
    def open_store(name="store"):
        return new_store(name, **SMALL)

    return open_store


@pytest.fixture
def used(monkeypatch):
    """Whether each rebuild began from a checkpoint."""
    found = []
    real = rebuild.unpack_checkpoint

    def unpack(engine, directory):
        found.append(real(engine, directory))
        return found[-1]

    monkeypatch.setattr(rebuild, "unpack_checkpoint", unpack)
    return found


def lose_index(path):
    shutil.rmtree(path / "index")
    (path / "INDEX").unlink()


def rows_of(store):
    """Every row of the index by database, but for what is random in each building of it."""
    index = store._engine.index
    dbs = {name: getattr(index, name) for name in ("keydir", "system", "tombstones")}
    dbs |= {"expiry": index.expiry, "contents": index.contents}
    with index.reading() as txn:
        found = {name: dict(txn.cursor(db)) for name, db in dbs.items()}
        unnamed = {key: txn.get(key) for key, _ in txn.cursor() if key not in NAMED}
    meta = decode_meta(unnamed.pop(META_KEY))
    unnamed.pop(DELETIONS_KEY, None)  # when compacting them was last of no use: not in the log
    return found | {"": unnamed, "meta": meta._replace(chain=0, timeline=0, epoch=0)}


def both_ways(path, open_, used):
    """Rebuild a closed store from its checkpoint and from the log alone; what it holds."""
    assert (path / "index.checkpoint").exists()
    found, items = [], []
    for name in ("with", "without"):
        copy = path.with_name(name)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        lose_index(copy)
        if name == "without":
            (copy / "index.checkpoint").unlink()
        used.clear()
        with open_(name) as store:
            assert used == [name == "with"], "one building, which did not have to begin anew"
            assert store.verify(deep=True).problems == ()
            found.append(rows_of(store))
            items.append(dict(store.items()))
    for name, rows in found[0].items():
        assert rows == found[1][name], name
    assert items[0] == items[1]
    return items[0]


# -- what may happen behind a checkpoint -----------------------------------------------------------


def nothing(store):
    pass


def newer_commits(store):
    store.save("plain 1", "newer")
    store.save("new", 1)
    store.save("deleted", "back again")


def deletions(store):
    store.delete("plain 2")
    store.delete("content 1")
    store.delete("expiring")
    store.save("once", 1)
    store.delete("once")


def references(store):
    store.save("content 2", TEXTS[0])
    store.save("one more", TEXTS[1])
    for number in range(3):
        store.delete(f"content {number}")
    store.save("content 0", TEXTS[0])
    store.content.put(TEXTS[5])


def contents_that_end_and_begin_again(store):
    for number in range(3):
        store.save(f"content {number}", "small")
    store.save("content 0", TEXTS[0])


def expiries(store):
    store.touch("expiring", 5000)
    store.save("plain 1", 1, ttl=100)
    store.save("expiring too", "now for good")
    store.touch("plain 3", 77)
    store.delete("plain 3")


def more_segments(store):
    for number in range(12):
        store.save(f"plain {number % 4}", random.Random(number).randbytes(20_000))
    store.delete("plain 1")


def compaction_of_everything(store):
    more_segments(store)
    store.save("plain 2", "newer")
    engine = store._engine
    checkpoint = engine.checkpoint_path.read_bytes()
    store.compact()
    engine.checkpoint_path.write_bytes(checkpoint)  # the one from before
    store.save("after", 1)


def sealed(store):
    """The ids of the files that count, without the active one."""
    with store._engine.index.reading() as txn:
        return [segment for segment, _ in listed_segments(txn)][:-1]


def compaction_of_one_file(store):
    more_segments(store)
    first, second, *_ = sealed(store)
    compaction.compact_files(store._engine, [first], UNPACED)
    store.delete("plain 3")
    compaction.compact_files(store._engine, [second], UNPACED)


def copies_of_copies(store):
    compaction_of_one_file(store)
    more_segments(store)
    with store._engine.index.reading() as txn:
        rows = dict(listed_segments(txn))
    copies = [segment for segment, row in rows.items() if row.kind == FileKind.COPY]
    assert copies
    compaction.compact_files(store._engine, copies, UNPACED)


CHANGES = [
    nothing,
    newer_commits,
    deletions,
    references,
    contents_that_end_and_begin_again,
    expiries,
    more_segments,
    compaction_of_everything,
    compaction_of_one_file,
    copies_of_copies,
]


def fill(store):
    store.save_many({f"plain {number}": number for number in range(20)})
    for number in range(4):
        store.save(f"content {number}", TEXTS[number])
    store.save("content 3 too", TEXTS[3])
    store.content.put(TEXTS[4])
    store.save("expiring", 1, ttl=50)
    store.save("expiring too", 1, ttl=60)
    store.save("deleted", 1)
    store.delete("deleted")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [nothing, more_segments, compaction_of_one_file])
def test_the_index_is_that_of_the_log_alone(tmp_path, open_, used, before, change):
    with open_() as store:
        fill(store)
        before(store)
        store._engine.upkeep.checkpoint()
        change(store)
        expected = dict(store.items())
    assert both_ways(tmp_path / "store", open_, used) == expected


@pytest.mark.parametrize("seed", range(8))
def test_any_history(tmp_path, open_, used, seed):
    chance = random.Random(seed)
    model = {}
    with open_() as store:
        for step in range(250):
            key = f"k{chance.randrange(30)}"
            draw = chance.random()
            if draw < 0.25:
                model.pop(key, None)
                store.delete(key)
            elif draw < 0.94:
                noise = chance.randbytes(chance.choice([1, 50, 5000]))
                value = chance.choice([chance.choice(TEXTS), noise])
                model[key] = value
                store.save(key, value, ttl=chance.choice([None, None, 1000]))
            elif draw < 0.97 or step < 30:
                store._engine.upkeep.checkpoint()
            else:
                store.compact()
        if not (tmp_path / "store" / "index.checkpoint").exists():
            store._engine.upkeep.checkpoint()
        store.save("last", 1)
        model["last"] = 1
    assert both_ways(tmp_path / "store", open_, used) == model


def test_what_was_recovered_is_recovered_again(tmp_path, open_, used):
    """The checkpoint outlives a recovery, which begins a new segment and a new timeline."""
    with open_() as store:
        fill(store)
        store._engine.upkeep.checkpoint()
    for number in range(4):
        lose_index(tmp_path / "store")
        used.clear()
        with open_() as store:
            assert used == [True]
            store.save(f"round {number}", number)
            store.save("content 0", TEXTS[number])
    both_ways(tmp_path / "store", open_, used)


# -- checkpoints that are not used -----------------------------------------------------------------


@pytest.fixture
def closed(tmp_path, open_):
    """The path of a store that has a checkpoint and commits behind it."""
    with open_() as store:
        fill(store)
        more_segments(store)
        store._engine.upkeep.checkpoint()
        newer_commits(store)
        references(store)
    return tmp_path / "store"


def without(path, open_):
    """What the log alone gives."""
    copy = path.with_name("reference")
    shutil.copytree(path, copy)
    lose_index(copy)
    (copy / "index.checkpoint").unlink()
    with open_("reference") as store:
        return rows_of(store), dict(store.items())


def check_passed_over(path, open_):
    """Whatever the checkpoint says, the store is that of its log."""
    expected = without(path, open_)
    lose_index(path)
    with open_() as store:
        assert (rows_of(store), dict(store.items())) == expected
        assert store.verify().problems == ()
        store.save("goes on", 1)


def flip(offset):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[offset] ^= 0x10
        path.write_bytes(data)

    return damage


def cut(length):
    return lambda path: os.truncate(path, length)


DAMAGES = {
    "first byte": flip(0),
    "a page": flip(9000),
    "trailer": flip(-30),
    "checksum": flip(-1),
    "empty": cut(0),
    "shorter than a trailer": cut(20),
    "half": cut(16_384),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over(closed, open_, damage):
    DAMAGES[damage](closed / "index.checkpoint")
    check_passed_over(closed, open_)


def test_that_of_another_store_is_passed_over(closed, open_):
    with open_("other") as other:
        other.save("foreign", 1)
        other._engine.upkeep.checkpoint()
        shutil.copy(other._engine.checkpoint_path, closed)
    check_passed_over(closed, open_)


def test_that_of_a_copy_which_went_its_own_way_is_passed_over(closed, open_, used):
    shutil.copytree(closed, closed.with_name("fork"))
    with open_("fork") as fork:
        fork.save("in the fork", 1)
        fork._engine.upkeep.checkpoint()
        checkpoint = fork._engine.checkpoint_path.read_bytes()
    lose_index(closed)
    with open_() as store:
        store.save("here", 1)
        store.save("here too", 2)
    (closed / "index.checkpoint").write_bytes(checkpoint)
    check_passed_over(closed, open_)


def test_that_of_a_copy_at_the_same_commit_loses_nothing(closed, open_):
    """Both began a segment with the same id behind the same commit; they are not the same."""
    shutil.copytree(closed, closed.with_name("fork"))
    with open_("fork") as fork:
        fork._engine.upkeep.checkpoint()
        checkpoint = fork._engine.checkpoint_path.read_bytes()
    lose_index(closed)
    with open_() as store:
        store.save("here", 1)
        with store._engine.index.reading() as txn:
            meta = decode_meta(txn.get(META_KEY))
    newest = max((closed / "log").glob("*.seg"))
    os.truncate(newest, meta.offset)  # no end mark vouches for the last commit
    (closed / "index.checkpoint").write_bytes(checkpoint)
    check_passed_over(closed, open_)


def test_one_of_a_place_that_the_log_does_not_reach_is_passed_over(tmp_path, open_):
    """The log is on disk before a checkpoint has its name; whoever cut it did it by hand."""
    with open_() as store:
        fill(store)
        store._engine.upkeep.checkpoint()
        with store._engine.index.reading() as txn:
            meta = decode_meta(txn.get(META_KEY))
    path = tmp_path / "store"
    os.truncate(path / "log" / "0000000001.seg", meta.last)
    check_passed_over(path, open_)


def test_one_whose_last_batch_is_not_in_the_log_is_passed_over(tmp_path, open_):
    with open_() as store:
        fill(store)
        store._engine.upkeep.checkpoint()
        with store._engine.index.reading() as txn:
            meta = decode_meta(txn.get(META_KEY))
    path = tmp_path / "store"
    with (path / "log" / "0000000001.seg").open("r+b") as file:
        file.truncate(meta.offset)
        file.seek(meta.last)
        file.write(bytes(meta.offset - meta.last))
    check_passed_over(path, open_)


def test_damage_in_the_log_behind_it_is_still_damage(closed, open_):
    newest = max((closed / "log").glob("*.seg"))
    data = bytearray(newest.read_bytes())
    data[-100] ^= 0x10
    newest.write_bytes(data)
    lose_index(closed)
    for _ in range(2):
        with pytest.raises(CorruptionError):
            LMDBStore(closed, **SMALL)
    assert (closed / "index.checkpoint").exists()
