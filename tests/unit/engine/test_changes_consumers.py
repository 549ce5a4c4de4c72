"""Named consumers: what is remembered of them, when, and what is kept for them."""

import itertools
import math
import os
import threading

import pytest

from kvsage import (
    ChangesLostError,
    ConfigError,
    CorruptionError,
    LMDBStore,
    ReadOnlyStoreError,
    StoreFullError,
    TransactionStateError,
)
from kvsage.engine import changes as reading
from kvsage.engine import compaction
from kvsage.engine import feed as feeds
from kvsage.log.segment import list_files
from kvsage.types import COMMIT_END
from tests.support.small import OPTIONS, make_small

PATIENCE_S = 60
WEEK_S = 7 * 86_400


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Small pieces, and no pause between two stores of a position."""
    monkeypatch.setattr(reading, "CHANGES_MAX", 4)
    monkeypatch.setattr(feeds, "STORE_PAUSE_S", 0)


@pytest.fixture
def store(new_store):
    yield new_store(upkeep_interval=math.inf)
    store = new_store(upkeep_interval=math.inf)
    assert store.verify(deep=True).problems == ()


@pytest.fixture
def ten(store):
    for number in range(10):
        store.save(f"k{number}", number)
    return store


def write(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def keys(feed):
    return [change.key for change in feed]


def passed(store, name="me"):
    """How many of the changes a consumer has passed, as far as is stored."""
    position = store.consumers()[name].position
    return sum(change.position <= position for change in store.changes())


def test_it_goes_on_where_it_was(ten):
    with ten.changes(consumer="me") as feed:
        assert len(keys(feed)) == 10
    ten.save("new", 1)
    with ten.changes(consumer="me") as feed:
        assert keys(feed) == ["new"]
    with ten.changes(consumer="other") as feed:
        assert len(keys(feed)) == 11
    with ten.changes(consumer="me") as feed:
        assert keys(feed) == []


def test_another_process_would_go_on_there(new_store, ten):
    with ten.changes(consumer="me") as feed:
        first = keys(itertools.islice(feed, 7))
    ten.close()
    again = new_store(upkeep_interval=math.inf)
    with again.changes(consumer="me") as feed:
        assert first + keys(feed) == [f"k{number}" for number in range(10)]


@pytest.mark.parametrize("count", range(11))
def test_closing_stores_what_was_handed_out(ten, count):
    feed = ten.changes(consumer="me")
    first = keys(itertools.islice(feed, count))
    feed.close()
    assert passed(ten) == count
    assert first + keys(ten.changes(consumer="me")) == [f"k{number}" for number in range(10)]


@pytest.mark.parametrize("count", range(1, 11))
def test_an_error_leaves_the_change_in_hand_to_the_next_time(ten, count):
    class UnwillingError(Exception):
        pass

    def work():
        with ten.changes(consumer="me") as feed:
            for number, _ in enumerate(feed, start=1):
                if number == count:
                    raise UnwillingError

    with pytest.raises(UnwillingError):
        work()
    assert passed(ten) == count - 1


def test_closed_by_another_thread_while_a_change_is_in_hand(ten):
    feed = ten.changes(consumer="me")
    assert keys(itertools.islice(feed, 3)) == ["k0", "k1", "k2"]
    thread = threading.Thread(target=feed.close)
    thread.start()
    thread.join(PATIENCE_S)
    assert list(feed) == []
    assert passed(ten) == 2


def test_a_feed_that_is_dropped_stores_nothing(ten):
    feed = ten.changes(consumer="me")
    keys(itertools.islice(feed, 3))
    del feed
    assert passed(ten) == 0


def test_a_position_is_stored_behind_a_piece_and_not_behind_a_change(ten):
    feed = ten.changes(consumer="me")
    told = [passed(ten) for _ in feed]
    assert told == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert passed(ten) == 10


def test_while_it_reads_on_it_is_stored_now_and_then(ten, monkeypatch):
    monkeypatch.setattr(feeds, "STORE_PAUSE_S", math.inf)
    commits = ten.stats().commits
    feed = ten.changes(consumer="me")
    assert len(keys(feed)) == 10
    assert ten.stats().commits == commits + 2  # that there is such a one, and the end


def test_what_did_not_move_is_not_stored(ten, clock):
    keys(ten.changes(consumer="me"))
    commits = ten.stats().commits
    for _ in range(3):
        with ten.changes(consumer="me") as feed:
            assert keys(feed) == []
            assert keys(feed) == []
    assert ten.stats().commits == commits
    # What others store is no change either.
    keys(ten.changes(consumer="other"))
    commits = ten.stats().commits
    assert keys(ten.changes(consumer="me")) == []
    assert ten.stats().commits == commits


def test_what_is_passed_under_other_prefixes_is_stored(ten):
    with ten.changes(consumer="me", prefix="none") as feed:
        assert keys(feed) == []
    assert passed(ten) == 10


def test_one_that_looks_in_vain_has_been_heard_of(ten, clock):
    keys(ten.changes(consumer="me"))
    told = ten.consumers()["me"].time
    clock.now += WEEK_S / 5
    keys(ten.changes(consumer="me"))
    assert ten.consumers()["me"].time == told
    clock.now += WEEK_S / 5
    keys(ten.changes(consumer="me"))
    assert (ten.consumers()["me"].time - told).total_seconds() == pytest.approx(2 * WEEK_S / 5)


def test_since_overrides_and_is_stored(ten):
    changes = list(ten.changes())
    keys(ten.changes(consumer="me"))
    feed = ten.changes(changes[3].position, consumer="me")
    assert passed(ten) == 4
    assert keys(feed) == [f"k{number}" for number in range(4, 10)]


def test_acknowledging(ten):
    feed = ten.changes(consumer="me")
    next(feed)
    feed.acknowledge()
    assert passed(ten) == 1
    second, third = next(feed), next(feed)
    feed.acknowledge(second.position)
    assert passed(ten) == 2
    # From here on nothing else is stored: the consumer has more in hand than it has done.
    assert len(keys(feed)) == 7
    assert passed(ten) == 2
    feed.acknowledge(str(third.position))
    feed.close()
    assert passed(ten) == 3
    feed = ten.changes()
    with pytest.raises(ConfigError):
        feed.acknowledge()


def test_inside_a_transaction_nothing_is_stored(ten):
    with ten.changes(consumer="me") as feed:
        with ten.transaction() as tx:
            for change in feed:
                tx.save(f"copy of {change.key}", change.value)
            with pytest.raises(TransactionStateError):
                feed.acknowledge()
        assert passed(ten) == 0
    assert ten.consumers()["me"].position.seq == 11  # of this consumer; the transaction's is behind
    assert len(keys(ten.changes(consumer="me"))) == 10


def test_a_store_that_cannot_take_it_says_so_and_nothing_is_missed(ten, monkeypatch):
    feed = ten.changes(consumer="me")
    first = keys(itertools.islice(feed, 4))

    def refuse(*_, **__):
        raise StoreFullError("no space left")

    with monkeypatch.context() as full:
        full.setattr(ten._engine.committer, "commit", refuse)
        for _ in range(2):
            with pytest.raises(StoreFullError):
                next(feed)
    assert first + keys(feed) == [f"k{number}" for number in range(10)]


def test_dropping(ten):
    keys(ten.changes(consumer="me"))
    assert ten.drop_consumer("me")
    assert not ten.drop_consumer("me")
    assert ten.consumers() == {}
    assert len(keys(ten.changes(consumer="me"))) == 10


@pytest.mark.parametrize("name", ["", "x" * 201, 7, "\ud800", b"me"])
def test_names_that_cannot_be(ten, name):
    with pytest.raises(ConfigError):
        ten.changes(consumer=name)
    with pytest.raises(ConfigError):
        ten.drop_consumer(name)


def test_any_other_name_can_be(ten):
    names = ["x" * 200, "ü/ä\0", "a b"]
    for name in names:
        ten.changes(consumer=name).close()
    assert sorted(ten.consumers()) == sorted(names)


def test_reading_alone_is_not_enough(new_store, ten):
    with LMDBStore(ten.path, readonly=True, clock=ten._engine.clock) as reader:
        assert len(keys(reader.changes())) == 10
        with pytest.raises(ReadOnlyStoreError):
            reader.changes(consumer="me")
        assert reader.consumers() == {}


def test_a_rebuild_remembers_consumers(new_store, ten):
    with ten.changes(consumer="me") as feed:
        keys(itertools.islice(feed, 6))
    before = ten.consumers()
    ten.close()
    (ten.path / "INDEX").unlink()
    again = new_store(upkeep_interval=math.inf)
    assert again.consumers() == before
    assert keys(again.changes(consumer="me")) == ["k6", "k7", "k8", "k9"]


def test_a_damaged_record_is_told_and_can_be_replaced(ten):
    keys(ten.changes(consumer="me"))
    (path,) = list_files(ten._engine.disk, ten._engine.log_path).values()
    at = path.read_bytes().rindex(b"\xfffme") + 4
    was = path.read_bytes()[at : at + 8]
    write(path, at, bytes(8))
    with pytest.raises(CorruptionError, match="'me'") as caught:
        ten.changes(consumer="me")
    assert caught.value.segment == 1
    with ten._engine.index.reading() as txn:
        assert ten._engine.deletes_needed_after(txn) > 1 << 60
    ten.changes(ten.position(), consumer="me")
    write(path, at, was)
    assert passed(ten) == 10


# -- what is kept for them ----------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, new_store):
    make_small(monkeypatch)
    store = new_store("small", **OPTIONS)
    yield store
    assert store.verify(deep=True).problems == ()


def floor(store):
    with store._engine.index.reading() as txn:
        return reading.get_floor(txn)


def bury(store):
    """Put and delete, and let compaction do all that it may."""
    for number in range(40):
        store.save(f"k{number}", os.urandom(60))
    for number in range(40):
        store.delete(f"k{number}")
    squeeze(store)


def squeeze(store):
    for number in range(60):
        store.save(f"other{number % 3}", os.urandom(60))
    for _ in range(3):
        store.compact()


def test_deletions_are_kept_until_every_consumer_has_passed_them(small):
    state = set()

    def follow(feed):
        for change in feed:
            (state.add if change.kind == "put" else state.discard)(change.key)

    small.save_many({f"k{number}": 1 for number in range(40)})
    with small.changes(consumer="slow") as feed:
        follow(feed)
    with small.changes(consumer="quick") as feed:
        follow(feed)
    before = small.consumers()["slow"].position.seq
    bury(small)
    assert floor(small) <= before
    keys(small.changes(consumer="quick"))
    bury(small)
    assert floor(small) <= before
    with small.changes(consumer="slow") as feed:
        follow(feed)
    assert state == set(small.keys())
    keys(small.changes(consumer="quick"))
    squeeze(small)
    assert floor(small) > before


def test_a_consumer_in_the_middle_of_a_commit_has_not_passed_it(small):
    small.save_many({"a": 1, "b": 1})
    small.delete_many(["a", "b"])
    feed = small.changes(consumer="me")
    last = [change.position for change in itertools.islice(feed, 3)][-1]
    assert last[:2] == (2, 0)
    feed.acknowledge(last)
    bury(small)
    assert floor(small) < 2
    assert next(small.changes(consumer="me")).key == "b"


STEPS = ["_join", "_move_rows", "_retire", "_forget"]


def compact_with(store, monkeypatch, steps, work):
    """Compact, and let something happen before some steps."""

    def beginning(step):
        def begin(*arguments):
            work()
            return step(*arguments)

        return begin

    with monkeypatch.context() as patch:
        for name in steps:
            patch.setattr(compaction, name, beginning(getattr(compaction, name)))
        return store.compact()


@pytest.mark.parametrize("step", STEPS)
def test_one_that_comes_during_a_compaction_is_told_what_it_missed(small, monkeypatch, step):
    small.save("gone", 1)
    before = small.position()
    small.delete("gone")
    small.save("b", 1)
    told = []

    def register():
        try:
            small.changes(before, consumer="late").close()
        except ChangesLostError as error:
            told.append(error)

    compact_with(small, monkeypatch, [step], register)
    if not told:
        try:
            assert keys(small.changes(consumer="late")) == ["gone", "b"]
        except ChangesLostError as error:
            told.append(error)
    assert told or floor(small) <= before.seq


def test_one_that_comes_to_the_end_of_the_log_misses_nothing(small, monkeypatch):
    small.save_many({"a": 1, "gone": 1})
    small.delete("gone")
    names = []

    def register():
        names.append(f"late {len(names)}")
        small.changes(small.position(), consumer=names[-1]).close()
        small.save(names[-1], 1)
        small.delete(names[-1])

    assert compact_with(small, monkeypatch, STEPS, register).files_compacted
    assert len(names) >= len(STEPS)
    squeeze(small)
    for number, name in enumerate(names):
        heard = [change.key for change in small.changes(consumer=name) if change.kind == "delete"]
        assert heard == names[number:]


def test_a_dropped_consumer_keeps_nothing(small):
    small.changes(consumer="me").close()
    bury(small)
    assert floor(small) == 0
    small.drop_consumer("me")
    bury(small)
    assert floor(small) > 0


def test_one_that_was_not_heard_of_for_too_long_must_begin_anew(small, clock):
    with small.changes(consumer="me") as feed:
        assert keys(feed) == []
    small.save("a", 1)
    keys(small.changes(consumer="me"))
    clock.now += WEEK_S - 1
    bury(small)
    assert floor(small) <= 2
    clock.now += 2
    bury(small)
    assert floor(small) > 2
    with pytest.raises(ChangesLostError, match=r"'me'.*snapshot"):
        small.changes(consumer="me")
    with small.snapshot() as view:
        feed = small.changes(view.position, consumer="me")
    small.save("b", 1)
    assert keys(feed) == ["b"]
    assert keys(small.changes(consumer="me")) == []


def test_one_that_must_begin_anew_holds_nothing_back(small, clock):
    small.save("a", 1)
    keys(small.changes(consumer="me"))
    clock.now += WEEK_S + 1
    bury(small)
    lost = floor(small)
    clock.now -= WEEK_S + 1  # by a clock that was set back it is young again
    bury(small)
    assert floor(small) > lost


def test_one_under_way_since_the_beginning_may_stop_and_go_on_below_the_floor(small):
    small.save_many({f"early{number}": number for number in range(10)})
    bury(small)
    with small.changes(consumer="me") as feed:
        first = keys(itertools.islice(feed, 2))
    assert small.consumers()["me"].position.seq < floor(small)
    rest = keys(small.changes(consumer="me"))
    assert set(first + rest) >= set(small.keys())
    assert small.consumers()["me"].position.n == COMMIT_END


def test_the_bound_is_an_option(monkeypatch, new_store, clock):
    make_small(monkeypatch)
    store = new_store("brief", **OPTIONS, changes_kept=10)
    store.changes(consumer="me").close()
    bury(store)
    assert floor(store) == 0
    clock.now += 11
    bury(store)
    assert floor(store) > 0
    assert store.verify(deep=True).problems == ()
