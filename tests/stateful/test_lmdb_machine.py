"""``LMDBStore`` against a dictionary, by a state machine.

Every verb, on the store or inside a transaction, with a clock that moves both ways; snapshots held
across writes; sweeps, compactions, checkpoints, backups and restores; clean reopens, rebuilds
without the index, and images of the live directory as a crash would leave it, opened elsewhere.
After every step all that can be read must be what the model says, and at the end ``verify`` must
find nothing.

Segments and the pools are small, so that logs rotate, keys meet and contents are shared. Contents
begin at 64 bytes, so that a value of a few hundred bytes is a tree already, or at more, up to 4 KB,
where hardly any is. Large values grow and are edited anywhere, and what one key held another one
gets, a little changed.
"""

import math
import random
import shutil
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from xxhash import xxh3_128_digest

from kvsage import KeyNotFoundError, LMDBStore, TransactionStateError, UnsupportedError
from kvsage.serialization import pack
from tests.support.chunks import chunks_of, conversation, edited, is_node, message
from tests.support.clock import FakeClock
from tests.support.model import Held, select, there

SEGMENT_BYTES_MAX = 65_536
CONTENT_BYTES_MIN = 4096
LARGE_BYTES_MAX = 12_000  # what has grown beyond this is cut down before it grows again
SNAPSHOTS_MAX = 3


def noise(seed, size):
    """Bytes that no compressor makes smaller."""
    return random.Random(seed).randbytes(size)


KEYS = ["a", "a:1", "a:2", "ab", "b", "é", "\uffff", "\U0001f600", "k" * 480]
BOUNDS = [*KEYS, "", "a:", "\x00", "zz"]
VALUES = {  # by name, so that a failure is told in names
    "zero": 0,
    "seven": 7,
    "empty text": "",
    "text": "text",
    "bytes": b"\x00\xff",
    "nothing": None,
    "float": 1.5,
    "empty list": [],
    "list": ["x"],
    "mapping": {"a": [1, {"b": b"c"}]},
    "text below the threshold": "x" * (CONTENT_BYTES_MIN - 1),
    "text at the threshold": "x" * CONTENT_BYTES_MIN,
    "the same as bytes": b"x" * CONTENT_BYTES_MIN,
    "noise of 4 KB": noise(1, CONTENT_BYTES_MIN + 1),
    "noise of 30 KB": noise(2, 30_000),
    "other noise of 30 KB": noise(3, 30_000),
    "more than a segment": noise(4, 70_000),
    "long conversation": conversation(random.Random(6), 30),
    "the same and more": conversation(random.Random(6), 33),
    "many small ones": [n % 50 for n in range(900)],
    "huge text": "\n".join(str(one) for one in conversation(random.Random(7), 12)),
    "nested": {
        "a": conversation(random.Random(8), 9),
        "b": {"c": [conversation(random.Random(6), 9)]},
    },
    "long list": ["a list of messages" * 10] * 40,
    "long mapping": {"a": noise(5, 5_000)},
}
CONTENTS = ["bytes", "text below the threshold", "the same as bytes", "noise of 30 KB"]

keys = st.sampled_from(KEYS)
names = st.sampled_from(list(VALUES))
# Multiples of a half are exact in binary, so an expiry falls on the instant that the model names.
ttls = st.one_of(st.none(), st.sampled_from([0.5, 1, 5, 60]))
bounds = st.one_of(st.none(), st.sampled_from(BOUNDS))
picks = st.integers(0, 1 << 16)


def serialized(value):
    """The bytes that a store keeps of a value."""
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else pack(value)


def same(value, other):
    return type(value) is type(other) and value == other


def whole_key(raw):
    return xxh3_128_digest(raw) + bytes(2)


def is_cut(value, size, content_bytes_min):
    """Whether a value of ``size`` bytes is a tree."""
    parts = 4 if isinstance(value, (list, dict)) else 16
    return size > parts * content_bytes_min


class Prepared(NamedTuple):
    """A save that was prepared, and not committed yet."""

    key: str
    value: Any
    operation: Any


class LMDBMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="kvsage-machine-"))
        self.numbers = count(1)
        self.clock = FakeClock()
        self.model = {}  # what is committed
        self.addresses = {}  # what content.put holds, by address
        self.known_addresses = {}  # every address ever given
        self.tx = None
        self.draft = {}  # what the transaction sees
        self.snapshots = []
        self.tokens = []
        self.backups = {}  # by name: the model, and the addresses, when it was made
        self.prepared = []
        self.store = None

    @initialize(
        durability=st.sampled_from(["full", "relaxed"]),
        content_bytes_min=st.sampled_from([64, 64, 512, CONTENT_BYTES_MIN]),
    )
    def begin_store(self, durability, content_bytes_min):
        self.path = self.place / "store"
        self.content_bytes_min = content_bytes_min
        self.open(durability)

    def open(self, durability):
        self.store = LMDBStore(
            self.path,
            clock=self.clock,
            durability=durability,
            segment_bytes_max=SEGMENT_BYTES_MAX,
            content_bytes_min=self.content_bytes_min,
            upkeep_interval=math.inf,  # upkeep is what a rule does
        )

    # What a rule acts on: the transaction where one is open, else the store.

    @property
    def verbs(self):
        return self.store if self.tx is None else self.tx

    @property
    def mine(self):
        return self.model if self.tx is None else self.draft

    @property
    def seen(self):
        """What the rule's target should show."""
        return there(self.mine, self.clock())

    def put(self, key, value, ttl):
        expires_at = None if ttl is None else self.clock() + ttl
        self.mine[key] = Held(value, expires_at, next(self.numbers))

    def put_keeping_expiry(self, key, value):
        held = self.seen.get(key)
        expires_at = None if held is None else held.expires_at
        self.mine[key] = Held(value, expires_at, next(self.numbers))

    # -- one key ----------------------------------------------------------------------------

    @rule(key=keys, name=names, ttl=ttls)
    def save(self, key, name, ttl):
        value = VALUES[name]
        assert self.verbs.save(key, value, ttl) is True
        self.put(key, value, ttl)

    @rule(key=keys, name=names, ttl=ttls)
    def add(self, key, name, ttl):
        value = VALUES[name]
        absent = key not in self.seen
        assert self.verbs.add(key, value, ttl) is absent
        if absent:
            self.put(key, value, ttl)

    @rule(key=keys)
    def delete(self, key):
        was_there = key in self.seen
        assert self.verbs.delete(key) is was_there
        if was_there:
            del self.mine[key]

    @rule(key=keys)
    def look(self, key):
        held = self.seen.get(key)
        absent = object()
        value = self.verbs.load(key, absent)
        assert self.verbs.exists(key) is (held is not None)
        entry = self.verbs.entry(key)
        if held is None:
            assert value is absent
            assert entry is None
            with pytest.raises(KeyNotFoundError):
                self.verbs.ttl(key)
            return
        assert same(value, held.value)
        assert same(entry.value, held.value)
        assert entry.size == len(serialized(held.value))
        if held.expires_at is None:
            assert entry.expires_at is None
            assert self.verbs.ttl(key) is None
        else:
            assert entry.expires_at.timestamp() == held.expires_at
            assert self.verbs.ttl(key) == held.expires_at - self.clock()

    @rule(key=keys, name=names)
    def update(self, key, name):
        value = VALUES[name]
        held = self.seen.get(key)
        given = []
        self.verbs.update(key, lambda old: given.append(old) or value, "default")
        assert same(given[0], "default" if held is None else held.value)
        self.put_keeping_expiry(key, value)

    @rule(key=keys, delta=st.sampled_from([1, -3, 1 << 70]))
    def increment(self, key, delta):
        held = self.seen.get(key)
        before = 0 if held is None else held.value
        if isinstance(before, int):
            assert self.verbs.increment(key, delta) == before + delta
            self.put_keeping_expiry(key, before + delta)
        else:
            with pytest.raises(UnsupportedError):
                self.verbs.increment(key, delta)

    # -- large values -----------------------------------------------------------------------

    def grown(self, source, chance):
        """What a key holds, edited; or the beginning of something."""
        held = self.seen.get(source)
        value = None if held is None else held.value
        if not isinstance(value, (list, dict, str, bytes)):
            return conversation(chance, chance.randint(0, 25))
        if len(serialized(value)) > LARGE_BYTES_MAX and not isinstance(value, dict):
            value = value[len(value) // 2 :]
        return edited(value, chance)

    @rule(
        key=keys, source=keys, seed=picks, how=st.sampled_from(["save", "add", "update"]), ttl=ttls
    )
    def save_edited(self, key, source, seed, how, ttl):
        value = self.grown(source, random.Random(seed))
        if how == "save":
            self.verbs.save(key, value, ttl)
            self.put(key, value, ttl)
        elif how == "update":
            self.verbs.update(key, lambda _: value)
            self.put_keeping_expiry(key, value)
        elif key not in self.seen:
            assert self.verbs.add(key, value, ttl) is True
            self.put(key, value, ttl)

    @rule(key=keys, seed=picks, steps=st.integers(2, 8))
    def save_each_edit(self, key, seed, steps):
        """As an agent does: whole, after every step."""
        chance = random.Random(seed)
        for _ in range(steps):
            value = self.grown(key, chance)
            self.verbs.save(key, value)
            self.put(key, value, None)

    @rule(key=keys, seed=picks, clear=st.booleans())
    def let_go_and_save_again(self, key, seed, clear):
        """What this handle remembers of a list that it saved is true no more."""
        value = conversation(random.Random(seed % 5), 70 + seed % 3)
        for _ in range(2):
            self.verbs.save(key, value)
        self.put(key, value, None)
        if clear:
            self.verbs.clear()
            for name in self.seen:
                del self.mine[name]
        else:
            self.verbs.delete(key)
            del self.mine[key]
        self.verbs.save(key, value[:-1])
        self.put(key, value[:-1], None)

    @rule(chosen=st.lists(keys, min_size=2, max_size=5), seed=picks, ttl=ttls)
    def save_edits_together(self, chosen, seed, ttl):
        """The same with a little difference, or with none, in one commit."""
        chance = random.Random(seed)
        value = self.grown(chosen[0], chance)
        pairs = {}
        for key in chosen:
            pairs[key] = value
            value = edited(value, chance) if chance.random() < 0.7 else value
        assert self.verbs.save_many(pairs, ttl) == len(pairs)
        for key, one in pairs.items():
            self.put(key, one, ttl)

    @precondition(lambda self: self.tx is None)
    @rule(key=keys, source=keys, seed=picks)
    def prepare(self, key, source, seed):
        """A save that looks for chunks now and comes behind the gate later, as beside others."""
        value = self.grown(source, random.Random(seed))
        operation = self.store._preparer.save(key, value, None, 0)
        self.prepared.append(Prepared(key, value, operation))

    @precondition(lambda self: self.tx is None and self.prepared)
    @rule(pick=picks, together=st.booleans())
    def commit_prepared(self, pick, together):
        some = self.prepared if together else [self.prepared[pick % len(self.prepared)]]
        self.store._engine.committer.commit([one.operation for one in some], full=False)
        for one in some:
            self.put(one.key, one.value, None)
        self.prepared = [one for one in self.prepared if one not in some]

    @rule(
        key=keys,
        seed=picks,
        number=st.integers(0, 40),
        kind=st.sampled_from(["message", "int", "text"]),
    )
    def extend(self, key, seed, number, kind):
        chance = random.Random(seed)
        if kind == "message":
            items = [message(chance) for _ in range(number // 4)]
        else:
            items = list(range(number)) if kind == "int" else ["z" * 3000] * (number // 20)
        held = self.seen.get(key)
        before = [] if held is None else held.value
        if isinstance(before, list):
            after = [*before, *items]
            if len(items) == 1:
                assert self.verbs.append(key, items[0]) == len(after)
            else:
                assert self.verbs.extend(key, items) == len(after)
            self.put_keeping_expiry(key, after)
        else:
            with pytest.raises(UnsupportedError):
                self.verbs.extend(key, items)

    @rule(key=keys, start=st.integers(-40, 40), stop=st.one_of(st.none(), st.integers(-40, 60)))
    def load_range(self, key, start, stop):
        held = self.seen.get(key)
        value = [] if held is None else held.value
        if isinstance(value, list):
            assert self.verbs.load_range(key, start, stop) == value[start:stop]
        else:
            with pytest.raises(UnsupportedError):
                self.verbs.load_range(key, start, stop)

    @rule(key=keys, ttl=ttls)
    def touch(self, key, ttl):
        held = self.seen.get(key)
        assert self.verbs.touch(key, ttl) is (held is not None)
        if held is not None:
            self.put(key, held.value, ttl)

    # -- many keys --------------------------------------------------------------------------

    @rule(pairs=st.dictionaries(keys, names, max_size=4), ttl=ttls)
    def save_many(self, pairs, ttl):
        pairs = {key: VALUES[name] for key, name in pairs.items()}
        assert self.verbs.save_many(pairs, ttl) == len(pairs)
        for key, value in pairs.items():
            self.put(key, value, ttl)

    @rule(chosen=st.lists(keys, max_size=4))
    def delete_many(self, chosen):
        gone = set(chosen) & set(self.seen)
        assert self.verbs.delete_many(chosen) == len(gone)
        for key in gone:
            del self.mine[key]

    @rule(chosen=st.lists(keys, max_size=4))
    def load_many(self, chosen):
        seen = self.seen
        expected = {key: seen[key].value for key in chosen if key in seen}
        assert self.verbs.load_many(chosen) == expected

    @rule(prefix=st.sampled_from(["a", "a:", "é", "\U0001f600", "none"]))
    def clear(self, prefix):
        gone = select(self.seen, prefix)
        assert self.verbs.clear(prefix) == len(gone)
        for key in gone:
            del self.mine[key]

    @rule(
        prefix=st.sampled_from(["", "a", "a:", "\uffff"]),
        start=bounds,
        stop=bounds,
        reverse=st.booleans(),
        limit=st.one_of(st.none(), st.integers(0, 5)),
    )
    def scan(self, prefix, start, stop, reverse, limit):
        seen = self.seen
        for chosen in (
            {"prefix": prefix, "start": start, "stop": stop, "reverse": reverse, "limit": limit},
            {"start": start, "stop": stop},
            {"stop": stop, "reverse": reverse},
            {"prefix": prefix, "reverse": reverse},
        ):
            expected = select(seen, **chosen)
            assert list(self.verbs.keys(**chosen)) == expected
            pairs = [(key, seen[key].value) for key in expected]
            assert list(self.verbs.items(**chosen)) == pairs
        assert self.verbs.count(prefix) == len(select(seen, prefix))

    # -- versions ---------------------------------------------------------------------------

    @rule()
    def keep_tokens(self):
        # Of what is committed: a transaction's own writes have no version yet.
        for key, held in there(self.model, self.clock()).items():
            self.tokens.append((key, self.store.entry(key).version, held.write))

    def check_tokens(self):
        """A token names the same state for ever, however often the store was opened since."""
        seen = there(self.model, self.clock())
        for key, token, write in self.tokens:
            held = seen.get(key)
            if held is not None:
                assert (self.store.entry(key).version == token) is (held.write == write)

    @precondition(lambda self: self.tokens)
    @rule(pick=picks, name=names, ttl=ttls)
    def save_if_version(self, pick, name, ttl):
        value = VALUES[name]
        key, token, write = self.tokens[pick % len(self.tokens)]
        held = self.seen.get(key)
        unchanged = held is not None and held.write == write
        assert self.verbs.save(key, value, ttl, if_version=token) is unchanged
        if unchanged:
            self.put(key, value, ttl)

    # -- transactions -----------------------------------------------------------------------

    @precondition(lambda self: self.tx is None)
    @rule()
    def begin(self):
        self.tx = self.store.transaction().__enter__()
        self.draft = dict(self.model)

    @precondition(lambda self: self.tx is not None)
    @rule(explicit=st.booleans())
    def commit(self, explicit):
        tx, self.tx = self.tx, None
        if explicit:
            tx.commit()
        tx.__exit__(None, None, None)
        self.model = self.draft

    @precondition(lambda self: self.tx is not None)
    @rule(explicit=st.booleans())
    def roll_back(self, explicit):
        tx, self.tx = self.tx, None
        if explicit:
            tx.rollback()
        tx.__exit__(ZeroDivisionError, ZeroDivisionError(), None)

    @precondition(lambda self: self.tx is not None)
    @rule(key=keys)
    def write_beside_the_transaction(self, key):
        with pytest.raises(TransactionStateError):
            self.store.save(key, "beside")

    # -- snapshots --------------------------------------------------------------------------

    @precondition(lambda self: len(self.snapshots) < SNAPSHOTS_MAX)
    @rule()
    def take_snapshot(self):
        # A transaction's writes are not in it: they are not committed.
        self.snapshots.append((self.store.snapshot(), dict(self.model), self.clock()))

    @precondition(lambda self: self.snapshots)
    @rule(pick=picks, key=keys)
    def drop_snapshot(self, pick, key):
        view, model, now = self.snapshots.pop(pick % len(self.snapshots))
        self.check_snapshot(view, model, now)
        held = there(model, now).get(key)
        assert view.exists(key) is (held is not None)
        if held is not None and held.expires_at is not None:
            assert view.ttl(key) == held.expires_at - now
        view.close()

    @staticmethod
    def check_snapshot(view, model, now):
        expected = [(key, held.value) for key, held in there(model, now).items()]
        assert list(view.items()) == expected

    # -- time -------------------------------------------------------------------------------

    @precondition(lambda self: self.tx is None)
    @rule(seconds=st.sampled_from([0.5, 1, 4.5, 60, -0.5, -1, -60]))
    def move_clock(self, seconds):
        self.clock.advance(seconds)

    # -- content ----------------------------------------------------------------------------

    @precondition(lambda self: self.tx is None)
    @rule(name=st.sampled_from(CONTENTS))
    def put_content(self, name):
        raw = serialized(VALUES[name])
        address = self.store.content.put(raw)
        assert self.addresses.get(address, raw) == raw
        self.addresses[address] = self.known_addresses[address] = raw

    @precondition(lambda self: self.tx is None and self.known_addresses)
    @rule(pick=picks)
    def delete_content(self, pick):
        address = sorted(self.known_addresses)[pick % len(self.known_addresses)]
        assert self.store.content.delete(address) is (address in self.addresses)
        self.addresses.pop(address, None)

    # -- upkeep -----------------------------------------------------------------------------

    def forget_expired(self):
        """Drop from the model what a sweep should have removed now; how many keys."""
        left = there(self.model, self.clock())
        gone = len(self.model) - len(left)
        self.model = left
        return gone

    @precondition(lambda self: self.tx is None)
    @rule()
    def sweep(self):
        assert self.store.sweep() == self.forget_expired()
        assert self.store.stats().expired == 0

    @precondition(lambda self: self.tx is None)
    @rule()
    def compact(self):
        report = self.store.compact()
        self.forget_expired()  # it sweeps first
        stats = self.store.stats()
        assert stats.log_bytes == report.bytes_after
        assert stats.dead_bytes <= 52 * max(1, report.files_compacted)  # what RETIREs take
        if not self.snapshots:
            assert report.files_waiting == 0
            on_disk = {path.name for path in (self.path / "log").iterdir()}
            assert len(on_disk) == len(stats.segments)

    @precondition(lambda self: self.tx is None)
    @rule()
    def checkpoint(self):
        self.store.checkpoint()
        stats = self.store.stats()
        assert stats.checkpoint_seq == stats.commits

    # -- backups ----------------------------------------------------------------------------

    @rule(link=st.booleans(), verify=st.booleans(), keep=st.sampled_from([None, None, 2]))
    def back_up(self, link, verify, keep):
        # A transaction's writes are not in it: they are not committed.
        report = self.store.backup(self.place / "backups", link=link, verify=verify, keep=keep)
        self.backups[report.backup.name] = dict(self.model), dict(self.addresses)
        for name in report.removed:
            del self.backups[name]
        listed = LMDBStore.backups(self.place / "backups")
        assert [backup.name for backup in listed] == list(self.backups)

    @precondition(lambda self: self.backups)
    @rule(pick=picks)
    def restore_elsewhere(self, pick):
        name = list(self.backups)[pick % len(self.backups)]
        place = self.place / "restored"
        LMDBStore.restore(self.place / "backups", place, name=name, clock=self.clock)
        with LMDBStore(place, clock=self.clock, upkeep_interval=math.inf) as store:
            self.check_items(store, self.backups[name][0])
            report = store.verify(deep=True)
            assert report.ok, report.problems
        shutil.rmtree(place)
        assert LMDBStore.verify_backups(self.place / "backups").problems == ()

    @precondition(lambda self: self.backups and self.tx is None)
    @rule(pick=picks)
    def restore_in_place(self, pick):
        name = list(self.backups)[pick % len(self.backups)]
        self.let_go()
        LMDBStore.restore(
            self.place / "backups", self.path, name=name, overwrite=True, clock=self.clock
        )
        self.model, self.addresses = map(dict, self.backups[name])
        self.open("full")
        self.check_tokens()

    # -- opening anew -----------------------------------------------------------------------

    def let_go(self):
        for view, model, now in self.snapshots:
            self.check_snapshot(view, model, now)
            view.close()
        self.snapshots, self.prepared = [], []
        self.keep_tokens()
        self.store.close()

    @precondition(lambda self: self.tx is None)
    @rule(durability=st.sampled_from(["full", "relaxed"]))
    def reopen(self, durability):
        self.let_go()
        self.open(durability)
        self.check_tokens()

    @precondition(lambda self: self.tx is None)
    @rule(
        lost=st.sampled_from(
            [("index",), ("INDEX",), ("index", "INDEX"), ("index", "INDEX", "index.checkpoint")]
        )
    )
    def lose_the_index(self, lost):
        self.let_go()
        if "index" in lost:
            shutil.rmtree(self.path / "index")
        if "INDEX" in lost:
            (self.path / "INDEX").unlink()
        if "index.checkpoint" in lost:
            (self.path / "index.checkpoint").unlink(missing_ok=True)
        self.open("full")
        self.check_tokens()

    @rule(with_index=st.booleans(), with_checkpoint=st.booleans(), go_on=st.booleans())
    def crash(self, with_index, with_checkpoint, go_on):
        image = self.place / f"image-{next(self.numbers)}"
        image.mkdir()
        shutil.copy(self.path / "KVSAGE", image)
        shutil.copytree(self.path / "log", image / "log")
        if with_index:
            shutil.copy(self.path / "INDEX", image)
            # Never lock.mdb: closing it here would drop LMDB's own locks on it in this process.
            (image / "index").mkdir()
            shutil.copy(self.path / "index" / "data.mdb", image / "index")
        if with_checkpoint and (self.path / "index.checkpoint").exists():
            shutil.copy(self.path / "index.checkpoint", image)
        if go_on and self.tx is None:
            self.let_go()
            shutil.rmtree(self.path)
            self.path = image
            self.open("full")
            self.check_tokens()
            return
        with LMDBStore(image, clock=self.clock, upkeep_interval=math.inf) as store:
            self.check_items(store, self.model)
            report = store.verify(deep=True)
            assert report.ok, report.problems
        shutil.rmtree(image)

    # -- what holds after every step --------------------------------------------------------

    def check_items(self, verbs, model):
        expected = there(model, self.clock())
        found = dict(verbs.items())
        assert list(found) == list(expected)
        for key, held in expected.items():
            assert same(found[key], held.value), key
        assert verbs.count() == len(expected)

    @invariant()
    def contents_are_equal(self):
        if self.store is not None:
            self.check_items(self.store, self.model)
            if self.tx is not None:
                self.check_items(self.tx, self.draft)

    @invariant()
    def snapshots_stand_still(self):
        for view, model, now in self.snapshots:
            expected = there(model, now)
            assert list(view.keys()) == list(expected)
            assert view.count() == len(expected)

    @invariant()
    def expiries_are_equal(self):
        if self.store is not None:
            seen = self.seen
            for key in KEYS:
                assert self.verbs.exists(key) is (key in seen)
            for key, held in seen.items():
                left = None if held.expires_at is None else held.expires_at - self.clock()
                assert self.verbs.ttl(key) == left

    def whole(self, value):
        """The bytes of a value that is one content; None for any other."""
        raw = serialized(value)
        if len(raw) < self.content_bytes_min or is_cut(value, len(raw), self.content_bytes_min):
            return None
        return raw

    @invariant()
    def content_is_held_exactly_as_long_as_something_refers_to_it(self):
        if self.store is None:
            return
        chunks = chunks_of(self.store)
        self.check_contents(chunks)
        self.check_trees(chunks)
        stats = self.store.stats()
        nodes = sum(map(is_node, chunks.rows))
        references = sum(row.references for row in chunks.rows.values())
        assert (stats.contents, stats.content_nodes) == (len(chunks.rows) - nodes, nodes)
        assert stats.content_references == references
        expired = len(self.model) - len(there(self.model, self.clock()))
        assert (stats.keys, stats.expired) == (len(self.model), expired)  # until they are swept

    def check_contents(self, chunks):
        """Those that are known as a whole; any of them may be a leaf too."""
        held = Counter(self.addresses.values())
        held.update(self.whole(one.value) for one in self.model.values())
        del held[None]
        for raw, times in held.items():
            row = chunks.rows[whole_key(raw)]
            assert row.raw_length == len(raw)
            assert row.references >= times
        for address, raw in self.known_addresses.items():
            is_there = whole_key(raw) in chunks.rows
            assert is_there or raw not in held
            assert self.store.content.exists(address) is is_there
            if is_there:
                assert self.store.content.get(address) == raw
            else:
                with pytest.raises(KeyNotFoundError):
                    self.store.content.get(address)

    def check_trees(self, chunks):
        """Equal values refer to the same chunks; what is small or whole is no tree."""
        roots = {}
        for key, one in self.model.items():
            raw, root = serialized(one.value), chunks.roots[key.encode()]
            if len(raw) < self.content_bytes_min:
                assert root == ()
            elif self.whole(one.value) is not None:
                assert root == (whole_key(raw),)
            assert roots.setdefault((type(one.value), raw), root) == root

    def check_trees_anew(self):
        """A store that knows nothing cuts every value alike, whatever its history here was."""
        held = chunks_of(self.store)
        options = {"content_bytes_min": self.content_bytes_min, "upkeep_interval": math.inf}
        with LMDBStore(self.place / "anew", durability="relaxed", **options) as store:
            for key, one in self.model.items():
                store.save(key, one.value)
            anew = chunks_of(store)
        for key in self.model:
            encoded = key.encode()
            assert held.roots[encoded] == anew.roots[encoded], key
            assert held.under(key) == anew.under(key), key

    def teardown(self):
        try:
            if self.store is not None:
                if self.tx is not None:
                    self.tx.rollback()
                for view, model, now in self.snapshots:
                    self.check_snapshot(view, model, now)
                    view.close()
                report = self.store.verify(deep=True)
                assert report.ok, report.problems
                self.check_trees_anew()
        finally:
            if self.store is not None:
                self.store.close()
            shutil.rmtree(self.place)


LMDBMachine.TestCase.settings = settings(stateful_step_count=40)
# Half a minute when all is well, and more for those who ask for more examples; what fails is made
# small first, and that takes its time.
TestLMDBMachine = pytest.mark.timeout(900 + 3 * settings().max_examples)(LMDBMachine.TestCase)
