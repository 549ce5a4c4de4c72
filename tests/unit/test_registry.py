"""From a URL or a path to a store."""

from urllib.parse import quote

import pytest

import kvsage
from kvsage import LMDBStore
from kvsage.errors import ConfigError, KvsageError, NotAStoreError


@pytest.fixture
def opened():
    """Opens stores and closes them in the end."""
    stores = []

    def open_(url, **options):
        stores.append(kvsage.open(url, **options))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def test_a_plain_path(tmp_path, opened):
    for path in (tmp_path / "a", str(tmp_path / "a")):
        store = opened(path)
        assert isinstance(store, LMDBStore)
        assert store.path == tmp_path / "a"


def test_a_plain_path_is_not_decoded(tmp_path, opened):
    assert opened(tmp_path / "a%20b?c#d").path == tmp_path / "a%20b?c#d"


def test_a_tilde_in_a_plain_path(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened("~/store").path == tmp_path / "store"


def test_a_relative_path(tmp_path, opened, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened("store").save("k", 1)
    monkeypatch.chdir("/")
    assert opened(tmp_path / "store").load("k") == 1


@pytest.mark.parametrize("scheme", ["lmdb", "LMDB"])
def test_a_url(tmp_path, opened, scheme):
    store = opened(f"{scheme}://{tmp_path}/store")
    assert isinstance(store, LMDBStore)
    assert store.path == tmp_path / "store"


@pytest.mark.parametrize("name", ["a b", "a%b", "ü", "a?b", "a#b", "a+b", "~", "a;b=c&d"])
def test_the_path_of_a_url_is_percent_decoded(tmp_path, opened, name):
    assert opened(f"lmdb://{tmp_path}/{quote(name)}").path == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_tilde_in_a_url_is_a_name(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert opened(f"lmdb://{tmp_path}/~/store").path == tmp_path / "~" / "store"


def test_options_in_the_query(tmp_path, opened):
    query = "durability=relaxed&sync_interval=0.5&value_bytes_max=1000&ttl_default=60"
    options = opened(f"lmdb://{tmp_path}/store?{query}").options
    assert options.durability == "relaxed"
    assert options.sync_interval == 0.5
    assert options.value_bytes_max == 1000
    assert options.ttl_default == 60


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1", True), ("true", True), ("Yes", True), ("ON", True)],
        *[("0", False), ("false", False), ("No", False), ("off", False)],
    ],
)
def test_truth_in_the_query(tmp_path, opened, text, value):
    opened(f"lmdb://{tmp_path}/store")
    assert opened(f"lmdb://{tmp_path}/store?readonly={text}").options.readonly is value


def test_arguments_win_over_the_query(tmp_path, opened):
    url = f"lmdb://{tmp_path}/store?durability=relaxed&sync_interval=5"
    options = opened(url, durability="full").options
    assert (options.durability, options.sync_interval) == ("full", 5)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("no_such=1", "no_such"),
        ("segment_bytes_max=100000", "segment_bytes_max"),
        ("format=pickle", "format"),
        ("durability=none", "durability"),
        ("durability=", "durability"),
        ("readonly=maybe", "readonly"),
        ("readonly=", "readonly"),
        ("sync_interval=soon", "sync_interval"),
        ("sync_interval=-1", "sync_interval"),
        ("sync_interval=nan", "sync_interval"),
        ("value_bytes_max=1.5", "value_bytes_max"),
        ("value_bytes_max=0", "value_bytes_max"),
        ("ttl_default=never", "ttl_default"),
        ("ttl_default=-1", "ttl_default"),
        ("durability=full&durability=full", "durability"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused_by_name(tmp_path, query, named):
    with pytest.raises(ConfigError, match=named):
        kvsage.open(f"lmdb://{tmp_path}/store?{query}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "path or a URL"),
        ("mysql:///a", "mysql"),
        ("http://host/a", "http"),
        ("://a", "scheme"),
        ("lmdb://", "absolute"),
        ("lmdb://relative/path", "absolute"),
        ("lmdb://host:80/path", "absolute"),
        ("lmdb://[::1/path", "lmdb"),
        ("lmdb:///path#fragment", "%23"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(url, reason):
    with pytest.raises(ConfigError, match=reason):
        kvsage.open(url)


@pytest.mark.parametrize("name", ["%ff%fe", "a%ed%a0%80"])
def test_a_url_whose_path_is_no_utf_8_names_no_other_path(tmp_path, name):
    """Or two URLs would lead to one store."""
    with pytest.raises(ConfigError, match="UTF-8"):
        kvsage.open(f"lmdb://{tmp_path}/{name}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", [None, 5, b"/path", ["a"]])
def test_what_is_no_path_is_refused(url):
    with pytest.raises((ConfigError, TypeError)):
        kvsage.open(url)


def test_a_path_that_no_file_can_have_is_refused(tmp_path):
    for open_ in (LMDBStore, kvsage.open):
        with pytest.raises(KvsageError):
            open_(f"{tmp_path}/a\0b")
    with pytest.raises(KvsageError):
        kvsage.open(f"lmdb://{tmp_path}/a%00b")


def test_reading_makes_nothing(tmp_path):
    with pytest.raises(NotAStoreError):
        kvsage.open(f"lmdb://{tmp_path}/store?readonly=1")
    assert list(tmp_path.iterdir()) == []
