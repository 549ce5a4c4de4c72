"""Opening with an index that is missing, damaged or too large for its map: nothing is lost."""

import shutil

import pytest

from kvsage.errors import CorruptionError

KEYS = 500


@pytest.fixture
def filled(new_store, tmp_path):
    """A store that was closed clean; its directory."""
    with new_store() as store:
        store.save_many({f"k{number}": number for number in range(KEYS)})
        store.save("text", "x" * 10_000)
    return tmp_path / "store"


def overwrite(path, start, length, byte=b"\xee"):
    """Damage in place: the same file, by its inode and its size."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(byte * length)


def check_all_there(store):
    assert store.count() == KEYS + 1
    assert store.load("k7") == 7
    assert store.load("text") == "x" * 10_000
    assert store.verify(deep=True).problems == ()


@pytest.mark.parametrize("missing", ["index", "INDEX", "both"])
def test_an_index_that_is_missing_is_built_anew(filled, new_store, missing):
    if missing != "INDEX":
        shutil.rmtree(filled / "index")
    if missing != "index":
        (filled / "INDEX").unlink()
    check_all_there(new_store())


@pytest.mark.parametrize("byte", [b"\0", b"\xee"])
@pytest.mark.parametrize("pages", [(0, 1), (0, 2), (2, 8), (0, 100)], ids=str)
def test_an_index_that_is_damaged_in_place_is_built_anew(filled, new_store, pages, byte):
    """Device, inode and size are as INDEX says; only LMDB sees that this is no index."""
    path = filled / "index" / "data.mdb"
    size = path.stat().st_size
    start, end = (min(page * 4096, size) for page in pages)
    overwrite(path, start, end - start, byte)
    assert path.stat().st_size == size
    check_all_there(new_store())


def test_an_index_that_was_cut_is_built_anew(filled, new_store):
    path = filled / "index" / "data.mdb"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    check_all_there(new_store())


@pytest.mark.parametrize("offset", [0, 20, 40, 100])
def test_an_INDEX_that_is_damaged_is_not_trusted(filled, new_store, offset):  # noqa: N802
    overwrite(filled / "INDEX", offset, 1)
    check_all_there(new_store())


def test_a_rebuild_in_a_small_map_grows_it(new_store, tmp_path):
    """Where little address space could be reserved, a rebuild grows the map as a commit does."""
    with new_store(index_map_bytes=1 << 20) as store:
        for part in range(10):
            store.save_many({f"key-{part}-{number:06}": number for number in range(2000)})
        assert store.count() == 20_000
    shutil.rmtree(tmp_path / "store" / "index")
    store = new_store(index_map_bytes=1 << 20)
    assert store.count() == 20_000
    assert store.load("key-9-001999") == 1999


def test_a_copied_directory_is_not_trusted_and_nothing_is_lost(filled, new_store, tmp_path):
    shutil.copytree(filled, tmp_path / "copy")
    copy = new_store("copy")
    check_all_there(copy)
    copy.save("only here", 1)
    assert not new_store().exists("only here")


def test_a_rebuild_refuses_damage_and_leaves_everything(filled, new_store):
    (filled / "INDEX").unlink()
    log = filled / "log" / "0000000001.seg"
    overwrite(log, 300, 1)
    before = log.read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptionError) as raised:
            new_store()
        assert raised.value.segment == 1
    assert log.read_bytes() == before
    assert not (filled / "index.new").exists()
