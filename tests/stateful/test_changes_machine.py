"""Consumers of changes, compared with a model while all sorts of upkeep go on.

The model knows what each commit changed, so that a feed that reads right behind it must say exactly
that. Consumers that come by now and then may miss what compaction removed, and nothing else: the
order holds, nothing comes twice, and at the end they know every key as it is. The value of a change
is the one that it wrote, for as long as its key did not change again.
"""

import contextlib
import random
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvsage import ChangesLostError, LMDBStore
from kvsage.engine import changes as reading
from kvsage.engine import feed as feeds
from kvsage.types import COMMIT_END
from tests.support.chunks import conversation, edited
from tests.support.clock import FakeClock
from tests.support.small import OPTIONS, make_small

KEYS = st.sampled_from([f"{first}{number}" for first in "ab" for number in range(5)])
TEXT = "to be or not to be, that is the question. " * 3
LISTS = [conversation(random.Random(seed), 6) for seed in range(3)]
# Values of hundreds of bytes, which are whole contents, and lists of a thousand, which are trees.
VALUES = st.one_of(
    st.integers(),
    st.sampled_from(["short", TEXT + "1", TEXT + "2", TEXT + "3"]),
    st.binary(max_size=200),
    st.sampled_from([*LISTS, [*LISTS[0], "more"], [*LISTS[1], *LISTS[0]]]),
)
PREFIXES = st.sampled_from(["", "a", "b1", "none"])


class Follower:
    """One that keeps a list of the keys by listening, and its position."""

    def __init__(self, prefix, name):
        self.prefix, self.name = prefix, name
        self.position = None
        self.known = {}

    def hear(self, change):
        assert change.key.startswith(self.prefix)
        if self.position is not None:
            assert change.position[:2] > self.position[:2]
        self.position = change.position
        if change.kind == "put":
            self.known[change.key] = change.position.seq
        else:
            self.known.pop(change.key, None)


def seq_of(entry):
    return int(entry.version.partition("@")[0])


class Told(NamedTuple):
    kind: str
    key: str
    reason: str | None


class Changes(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.patches = pytest.MonkeyPatch()
        make_small(self.patches)
        self.patches.setattr(feeds, "STORE_PAUSE_S", 0)
        self.clock = FakeClock()
        self.there = {}  # key: expires_at or None
        self.values = {}  # key: what it holds, where it is there
        self.history = {}  # position: what happened
        self.followers = []
        self.open()
        self.witness = self.store.position()

    def open(self):
        self.store = LMDBStore(self.place / "store", clock=self.clock, **OPTIONS)

    def teardown(self):
        try:
            assert self.store.verify(deep=True).problems == ()
        finally:
            self.store.close()
            self.patches.undo()
            shutil.rmtree(self.place)

    @initialize(
        changes=st.integers(1, 9), entries=st.integers(1, 20), size=st.sampled_from([1, 300, 9999])
    )
    def pieces(self, changes, entries, size):
        self.patches.setattr(reading, "CHANGES_MAX", changes)
        self.patches.setattr(reading, "ENTRIES_MAX", entries)
        self.patches.setattr(reading, "BYTES_MAX", size)
        self.patches.setattr(reading, "WINDOW_BYTES", size)

    # -- commits ----------------------------------------------------------------------------

    def committed(self, expected, values):
        """A feed that reads right behind a commit says what it changed, and in which order."""
        changes = list(self.store.changes(self.witness))
        assert [Told(c.kind, c.key, c.reason) for c in changes] == expected
        for change, (key, value) in zip(changes, values, strict=True):
            assert change.key == key
            assert change.value == value
        for change in changes:
            assert change.position not in self.history
            self.history[change.position] = (change.kind, change.key, change.time)
            self.values[change.key] = change.value
        self.witness = self.store.position()

    def gone(self, key):
        """The delete of a key, where it is there."""
        expires_at = self.there.get(key, 0)
        if expires_at is None or expires_at > self.clock():
            del self.there[key]
            return [Told("delete", key, "user")]
        return []

    @rule(key=KEYS, value=VALUES, ttl=st.sampled_from([None, None, 5]))
    def save(self, key, value, ttl):
        self.store.save(key, value, ttl)
        self.there[key] = None if ttl is None else self.clock() + ttl
        self.committed([Told("put", key, None)], [(key, value)])

    @rule(key=KEYS, seed=st.integers(0, 99), late=st.booleans())
    def save_edited(self, key, seed, late):
        """A list that is there, a little changed; or what was in it has come or gone meanwhile."""
        lists = [value for value in self.values.values() if isinstance(value, list)]
        chance = random.Random(seed)
        value = edited(chance.choice([*lists, *LISTS])[-12:], chance)
        if late:
            operation = self.store._preparer.save(key, value, None, 0)
            other = chance.choice([key, "a1", "b1"])
            if chance.random() < 0.5:
                self.save(other, edited(value, chance), None)
            else:
                self.delete(other)
                self.compact()
            self.store._engine.committer.commit([operation], full=False)
        else:
            self.store.save(key, value)
        self.there[key] = None
        self.committed([Told("put", key, None)], [(key, value)])

    @rule(key=KEYS, items=st.lists(VALUES, max_size=3))
    def extend(self, key, items):
        expires_at = self.there.get(key, 0)
        is_there = expires_at is None or expires_at > self.clock()
        before = self.values[key] if is_there else []
        if isinstance(before, list) and len(before) < 40:
            assert self.store.extend(key, items) == len(before) + len(items)
            if not is_there:
                self.there[key] = None
            self.committed([Told("put", key, None)], [(key, before + items)])

    @rule(many=st.dictionaries(KEYS, VALUES, min_size=1, max_size=8))
    def save_many(self, many):
        self.store.save_many(many)
        self.there.update(dict.fromkeys(many))
        self.committed([Told("put", key, None) for key in many], list(many.items()))

    @rule(key=KEYS)
    def delete(self, key):
        expected = self.gone(key)
        assert self.store.delete(key) == bool(expected)
        self.committed(expected, [(key, None)] * len(expected))

    @rule(put=KEYS, deleted=KEYS, value=VALUES)
    def transaction(self, put, deleted, value):
        with self.store.transaction() as tx:
            tx.save(put, value)
            tx.delete(deleted)
        expected = [Told("put", put, None)]
        values = [(put, value)]
        if put == deleted:
            was_there = self.there.pop(put, 0)
            expected = values = []
            if was_there != 0:
                self.witness_whatever(put)
                return
        else:
            self.there[put] = None
            expected = expected + self.gone(deleted)
            values = values + [(deleted, None)] * (len(expected) - 1)
        self.committed(expected, values)

    def witness_whatever(self, key):
        """A key put and deleted in one transaction: at most its deletion is left of it."""
        for change in self.store.changes(self.witness):
            assert (change.kind, change.key) == ("delete", key)
            self.history[change.position] = (change.kind, change.key, change.time)
        self.witness = self.store.position()

    @rule(value=st.binary(min_size=64, max_size=300))
    def put_content(self, value):
        self.store.content.put(value)
        self.committed([], [])

    # -- time and upkeep --------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 6]))
    def pass_time(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def sweep(self):
        self.store.sweep()
        over = {key for key, end in self.there.items() if end is not None and end <= self.clock()}
        for key in over:
            del self.there[key]
        swept = list(self.store.changes(self.witness))
        assert {(c.kind, c.reason) for c in swept} <= {("delete", "expired")}
        assert sorted(c.key for c in swept) == sorted(over)
        self.history.update({c.position: (c.kind, c.key, c.time) for c in swept})
        self.witness = self.store.position()

    @rule()
    def compact(self):
        self.sweep()  # compaction does so too, and may drop the deletions right away
        self.store.compact()
        self.committed([], [])

    @rule()
    def checkpoint(self):
        self.store.checkpoint()

    @rule(lost=st.booleans())
    def reopen(self, lost):
        self.store.close()
        if lost:
            (self.place / "store" / "INDEX").unlink()
        self.open()
        self.committed([], [])

    # -- consumers --------------------------------------------------------------------------

    @rule(prefix=PREFIXES, named=st.booleans())
    def join(self, prefix, named):
        if len(self.followers) < 4:
            name = f"consumer {len(self.followers)}" if named else None
            self.followers.append(Follower(prefix, name))

    @rule(which=st.integers(0, 3), count=st.none() | st.integers(1, 10), hold=st.booleans())
    def follow(self, which, count, hold):
        if not self.followers:
            return
        follower = self.followers[which % len(self.followers)]
        try:
            self.listen(follower, count, hold=hold)
        except ChangesLostError:
            assert follower.name is None
            self.begin_anew(follower)

    def listen(self, follower, count, *, hold):
        since = None if follower.name is not None else follower.position
        feed = self.store.changes(since, follower.prefix, consumer=follower.name)
        with feed:
            for number, change in enumerate(feed, start=1):
                assert self.history[change.position] == (change.kind, change.key, change.time)
                follower.hear(change)
                self.tells_its_value(change)
                if number == count:
                    break
                if hold:  # what happens while it is under way
                    hold = False
                    self.compact()
            else:
                follower.position = feed.position
                self.knows_all(follower)
        assert feed.position == follower.position

    def tells_its_value(self, change):
        entry = self.store.entry(change.key)
        is_newest = entry is not None and seq_of(entry) == change.position.seq
        if change.kind == "delete":
            assert change.value is None
        elif is_newest:
            assert change.value == self.values[change.key] == entry.value
        else:
            with contextlib.suppress(ChangesLostError):
                assert change.value is not None

    def begin_anew(self, follower):
        with self.store._engine.index.reading() as txn:
            floor = reading.get_floor(txn)
        assert follower.position.seq <= floor
        with self.store.snapshot() as view:
            follower.known = {
                key: seq_of(view.entry(key)) for key in list(view.keys(follower.prefix))
            }
            follower.position = view.position
        self.knows_all(follower)

    def knows_all(self, follower):
        assert follower.position.n == COMMIT_END
        now = {key: seq_of(self.store.entry(key)) for key in list(self.store.keys(follower.prefix))}
        # What has expired is known until it is swept.
        known = {key: seq for key, seq in follower.known.items() if key in now}
        assert known == now
        assert follower.known.keys() - now.keys() <= {
            key for key, end in self.there.items() if end is not None and end <= self.clock()
        }

    @invariant()
    def nothing_is_held(self):
        if hasattr(self, "store"):
            assert all(reader.transaction is None for reader in self.store.stats().readers)


TestChanges = pytest.mark.timeout(300 + 3 * settings().max_examples)(Changes.TestCase)
TestChanges.settings = settings(
    max_examples=max(1, settings().max_examples // 2), stateful_step_count=40, deadline=None
)
