"""Following: what comes later arrives, and every way to end it ends it."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvsage import ConfigError, LMDBStore, StoreClosedError, StoreUnavailableError
from kvsage.engine import feed as feeds
from kvsage.fs.watch import FileWatch

PATIENCE_S = 60


@pytest.fixture
def store(new_store):
    yield new_store(upkeep_interval=math.inf)
    store = new_store(upkeep_interval=math.inf)
    assert store.verify(deep=True).problems == ()


@pytest.fixture
def aside():
    """Run something on another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


@pytest.fixture
def waiting(monkeypatch):
    """Released each time that a feed begins to wait for a write."""
    begun = threading.Semaphore(0)
    real = FileWatch.wait

    def wait(self, timeout_s):
        begun.release()
        return real(self, timeout_s)

    monkeypatch.setattr(FileWatch, "wait", wait)
    return lambda: begun.acquire(timeout=PATIENCE_S)


def keys(feed):
    return [change.key for change in feed]


def test_what_comes_later_arrives(store, aside, waiting):
    store.save("before", 1)
    feed = store.changes(follow=True)
    assert next(feed).key == "before"
    for number in range(5):
        came = aside(next, feed)
        assert waiting()
        store.save(f"k{number}", number)
        assert came.result(PATIENCE_S).key == f"k{number}"
    feed.close()


def test_what_came_while_nobody_waited_is_there_at_once(store):
    feed = store.changes(follow=True, timeout=0)
    assert keys(feed) == []
    store.save_many({"a": 1, "b": 2})
    assert keys(feed) == ["a", "b"]
    store.save("c", 1)
    assert keys(feed) == ["c"]
    assert feed.position == store.position()


def test_a_write_before_the_watch_begins_is_not_missed(store, monkeypatch):
    feed = store.changes(follow=True)
    real = feeds.FileWatch

    def watch(path):
        store.save("just now", 1)
        return real(path)

    monkeypatch.setattr(feeds, "FileWatch", watch)
    monkeypatch.setattr(feeds, "LOOK_LEAST_S", PATIENCE_S * 10)
    assert next(feed).key == "just now"
    feed.close()


def test_a_write_that_no_notice_tells_of_is_found(store, aside, waiting, monkeypatch):
    """As one is whose notice comes before a transaction can see it."""

    class Deaf:
        def wait(self, _):
            return False

        def close(self):
            pass

    monkeypatch.setattr("kvsage.fs.watch._notices", lambda _: Deaf())
    feed = store.changes(follow=True)
    came = aside(next, feed)
    for _ in range(3):
        assert waiting()
    store.save("a", 1)
    assert came.result(PATIENCE_S).key == "a"
    feed.close()


def test_it_does_not_look_again_and_again(store, aside, waiting, monkeypatch):
    waits = []
    feed = store.changes(follow=True)

    class Patient:
        def __init__(self, path):
            pass

        def wait(self, timeout_s):
            waits.append(timeout_s)
            if len(waits) == 20:
                feed.close()
            return False

        def close(self):
            pass

    monkeypatch.setattr(feeds, "FileWatch", Patient)
    assert keys(feed) == []
    assert waits[0] <= 0.001
    assert waits == sorted(waits)
    assert waits[-1] == feeds.LOOK_MOST_S


def test_writes_under_another_prefix_do_not_end_the_wait(store, aside, waiting):
    feed = store.changes(prefix="mine/", follow=True)
    came = aside(next, feed)
    for number in range(3):
        assert waiting()
        store.save(f"yours/{number}", 1)
    store.save("mine/1", 1)
    assert came.result(PATIENCE_S).key == "mine/1"
    feed.close()


def test_closing_the_feed_ends_the_iteration(store, aside, waiting):
    feed = store.changes(follow=True)
    rest = aside(keys, feed)
    assert waiting()
    feed.close()
    assert rest.result(PATIENCE_S) == []
    assert keys(feed) == []


def test_closing_the_store_ends_it_with_an_error(new_store, aside, waiting):
    for others in (0, 1):  # whether the engine closes too
        store = new_store("closing", upkeep_interval=math.inf)
        handles = [new_store("closing") for _ in range(others)]
        feed = store.changes(follow=True)
        rest = aside(keys, feed)
        assert waiting()
        store.close()
        with pytest.raises(StoreClosedError):
            rest.result(PATIENCE_S)
        with pytest.raises(StoreClosedError):
            next(feed)
        feed.close()
        for handle in handles:
            assert handle.verify(deep=True).ok


def test_a_feed_keeps_the_handle_that_it_came_from_open(tmp_path, aside, waiting):
    feed = LMDBStore(tmp_path / "store", upkeep_interval=math.inf).changes(follow=True)
    came = aside(next, feed)
    assert waiting()
    with LMDBStore(tmp_path / "store") as other:
        other.save("a", 1)
        assert came.result(PATIENCE_S).key == "a"
        assert other.verify(deep=True).ok
    feed.close()


def test_a_consumer_that_follows_is_remembered_as_it_waits(store, aside, waiting, monkeypatch):
    monkeypatch.setattr(feeds, "STORE_PAUSE_S", 0.001)
    feed = store.changes(consumer="me", follow=True)
    for number in range(3):
        store.save(f"k{number}", 1)
        assert next(feed).key == f"k{number}"
    last = feed.position
    rest = aside(next, feed)
    while store.consumers()["me"].position < last:
        assert waiting()
    commits = store.stats().commits
    # Its own note wakes it, and makes no other.
    for _ in range(5):
        assert waiting()
    assert store.stats().commits == commits
    feed.close()
    with pytest.raises(StopIteration):
        rest.result(PATIENCE_S)


def test_two_consumers_do_not_keep_each_other_awake(store, aside, waiting, monkeypatch):
    monkeypatch.setattr(feeds, "STORE_PAUSE_S", 0.001)
    store.save("a", 1)
    some = [store.changes(consumer=name, follow=True) for name in ("one", "two")]
    rest = [aside(keys, feed) for feed in some]
    end = store.changes(1).position
    while min(consumer.position for consumer in store.consumers().values()) < end:
        assert waiting()
    for _ in range(8):
        assert waiting()
    commits = store.stats().commits
    for _ in range(8):
        assert waiting()
    assert store.stats().commits == commits
    for feed in some:
        feed.close()
    assert [one.result(PATIENCE_S) for one in rest] == [["a"], ["a"]]


def test_a_map_that_another_thread_grows_is_followed(store, monkeypatch):
    store.save_many({f"k{number}": 1 for number in range(10)})
    failures = iter([True, False, True, True])
    real = feeds.read_on

    def read(*arguments):
        if next(failures):
            raise StoreUnavailableError("the index has grown")
        return real(*arguments)

    monkeypatch.setattr(feeds, "read_on", read)
    feed = store.changes()
    assert keys(itertools.islice(feed, 10)) == [f"k{number}" for number in range(10)]
    with pytest.raises(StoreUnavailableError):
        next(feed)


def test_an_interrupt_while_reading_loses_nothing(store, monkeypatch):
    store.save_many({f"k{number}": 1 for number in range(10)})
    feed = store.changes(follow=True, timeout=0)
    real, tries = feeds.instant, itertools.count(1)

    def interrupted(*arguments):
        if next(tries) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(feeds, "instant", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(feed)
    assert keys(feed) == [f"k{number}" for number in range(10)]


@pytest.mark.parametrize("timeout", [-1, "soon", math.nan, True])
def test_no_number_of_seconds(store, timeout):
    with pytest.raises(ConfigError, match="timeout"):
        store.changes(follow=True, timeout=timeout)
