"""The feed of changes that a consumer iterates over: resumable, following, remembered by name.

A change counts as passed when the consumer asks for the next one, or acknowledges it. What a named
consumer has passed is stored when it has caught up, asks for what follows a piece, or is closed,
but while it reads on at most twice a second: a store is a commit, and a follower that made one for
each change would double what the log takes.

Storing a position is no change, so it wakes no follower for good; a position that moved over
nothing but such commits is not stored.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from kvsage.engine.assembling import Assembler
from kvsage.engine.changes import (
    Piece,
    Stand,
    moment_of,
    position_of,
    read_on,
    refuse_lost,
)
from kvsage.engine.consumers import Record, consumer_key, find, put
from kvsage.engine.content import Mismatch, Missing
from kvsage.engine.snapshot import EPOCH, bounds, instant
from kvsage.errors import (
    ChangesLostError,
    ConfigError,
    CorruptionError,
    KvsageError,
    StoreClosedError,
    StoreUnavailableError,
)
from kvsage.fs.watch import FileWatch
from kvsage.index.segments import get_floor
from kvsage.log.format import BY_USER, EVICTED, EXPIRED, PUT, REFERS
from kvsage.types import Change, Position, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvsage.engine.changes import Found
    from kvsage.engine.engine import Engine
    from kvsage.engine.values import Codec
    from kvsage.log.format import LogEntry

Since: TypeAlias = "Position | str | tuple[int, int] | int | None"
Reason: TypeAlias = Literal["user", "expired", "evicted"]

REASONS: dict[int, Reason] = {BY_USER: "user", EXPIRED: "expired", EVICTED: "evicted"}
STORE_PAUSE_S = 0.5
LOOK_LEAST_S = 0.001
"""A write to the index can be noticed a moment before a new transaction sees what it wrote."""
LOOK_MOST_S = 5.0
REFRESHED_AGE = 0.25  # of ``changes_kept``: a consumer that looked has been heard of


class Request(NamedTuple):
    """What a caller asked for; see ``LMDBStore.changes``."""

    since: Since
    prefix: str
    follow: bool
    timeout: float | None
    consumer: str | None


class ChangeFeed:
    """Changes in the order of the commits. Made by ``changes()``.

    Iterate on one thread at a time; any thread may close. At the end of what there is (without
    ``follow``), or after ``timeout`` seconds without a change, the iteration ends; begun again, it
    goes on where it was. Nothing is held meanwhile: no file, no snapshot.

    Closing ends an iteration that waits on another thread. Closing the store does so with
    ``StoreClosedError``.
    """

    def __init__(
        self, reading: Callable[[], Engine], codec: Codec, request: Request, *, owner: object
    ) -> None:
        self._reading = reading
        self._values = Values(reading, codec, owner)
        self._prefix, _ = bounds(request.prefix, None, None)
        self._follow = request.follow
        self._timeout_s = _checked_timeout(request.timeout)
        self._name = request.consumer
        self._key = None if request.consumer is None else consumer_key(request.consumer)
        self._lock = threading.RLock()  # guards what was handled and what is stored
        self._watch: FileWatch | None = None
        self._thread = 0  # that iterates
        self._closed = self._by_hand = False
        self._moved = False  # over a change, since the position was stored
        self._stored_at_s = time.monotonic()
        stand, self._stored = self._begin(request)
        # One value, so that an interrupt finds either all of a piece here or nothing of it.
        self._piece: tuple[deque[Change], Stand, bool] = (deque(), stand, False)
        self._position = self._handled = position_of(reading(), stand.passed)
        if self._key is not None and self._stored is None:
            self._store(self._position, always=True)

    def _begin(self, request: Request) -> tuple[Stand, Record | None]:
        """Where to begin, and what is stored of the consumer.

        Raises:
            ChangesLostError: what follows there may be incomplete.
        """
        engine, since, floor = self._reading(), request.since, 0
        with engine.index.reading() as txn:
            stored = None
            if self._key is not None and since is None:
                stored = find(engine, txn, self._key)
            if stored is not None:
                since, floor = stored.position, stored.floor
            with self._named():
                passed = moment_of(engine, since)
                refuse_lost(txn, passed, floor)
            return Stand(passed, floor if passed[0] else get_floor(txn)), stored

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say in the errors which consumer it was."""
        try:
            yield
        except ChangesLostError as error:
            if self._name is None:
                raise
            raise ChangesLostError(f"consumer {self._name!r}: {error}") from error

    # -- iterating --------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        if self._key is not None:
            self._thread = threading.get_ident()
            self._handle(self._position)
        if not self._piece[0] and not self._more():
            raise StopIteration
        if self._closed:
            raise StopIteration
        change = self._piece[0].popleft()
        self._position = change.position
        return change

    def _more(self) -> bool:
        """Let there be changes to hand out; False where the iteration ends."""
        end_s = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
        look_s = LOOK_LEAST_S
        while not self._closed:
            if self._fetch():
                if self._piece[0]:
                    return True
            elif not self._follow or time.monotonic() >= end_s:
                self._store(self._handled, refresh=True)
                return False
            elif self._wait(look_s, end_s):
                look_s = LOOK_LEAST_S
            else:
                look_s = min(2 * look_s, LOOK_MOST_S)
        return False

    def _handle(self, position: Position) -> None:
        """Everything up to ``position`` was passed by the consumer."""
        with self._lock:
            if position != self._handled:
                self._handled = position
                self._moved = True

    def _fetch(self) -> bool:
        """Read what follows the last piece, which was passed; False at the end of the log."""
        engine = self._reading()
        self._reach(engine)
        if time.monotonic() >= self._stored_at_s + STORE_PAUSE_S:
            self._store(self._handled)
        with self._named():
            piece = self._read(engine)
        changes = deque(self._made(engine, piece.changes))
        self._piece = changes, piece.stand, piece.saw_change
        if changes:
            return True
        self._reach(engine)
        return not piece.at_end

    def _reach(self, engine: Engine) -> None:
        """Everything in the last piece was passed, what was not handed out too."""
        _, stand, saw_change = self._piece
        with self._lock:
            self._position = self._handled = position_of(engine, stand.passed)
            self._moved = self._moved or saw_change

    def _read(self, engine: Engine) -> Piece:
        stand = self._piece[1]
        try:
            with engine.index.reading() as txn:
                return read_on(engine, txn, self._prefix, stand)
        except StoreUnavailableError:  # another thread grew the map, which ends transactions
            engine = self._reading()
            if engine.closed:
                raise StoreClosedError("the store was closed") from None
            with engine.index.reading() as txn:
                return read_on(engine, txn, self._prefix, stand)

    def _made(self, engine: Engine, entries: Iterable[Found]) -> Iterator[Change]:
        """The changes that entries of the log make."""
        read, last_seq, timeline, time_ = self._values.reader, 0, 0, EPOCH
        for (seq, n), time_ms, _, _, _, entry in entries:
            assert entry is not None
            if seq != last_seq:
                last_seq, timeline = seq, engine.timeline_of(seq)
                time_ = instant(time_ms) or EPOCH
            position, key = Position(seq, n, timeline), entry.key.decode()
            if entry.kind == PUT:
                ends, value = instant(entry.expires_ms), read(position, key, entry)
                yield Change(position, time_, "put", key, ends, None, value)
            else:
                reason = REASONS.get(entry.flags, "user")
                yield Change(position, time_, "delete", key, None, reason, _nothing)

    def _wait(self, look_s: float, end_s: float) -> bool:
        """Wait for a write to the index; whether there may have been one."""
        watch = self._watch
        if watch is None:
            # What was written before the watch began is not told, so look once more behind it.
            self._watch = FileWatch(self._reading().index_path / "data.mdb")
            return True
        pause_s = min(look_s, end_s - time.monotonic())
        if self._moved and self._key is not None:
            pause_s = min(pause_s, self._stored_at_s + STORE_PAUSE_S - time.monotonic())
        return watch.wait(pause_s)

    # -- where it stands --------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Behind the last change that was handed out, or the end of the log that was reached."""
        return self._position

    def acknowledge(self, position: Position | str | None = None) -> None:
        """Store that a named consumer has passed everything handed out so far, or a position.

        Args:
            position: of a change. From the first position that is given here on, nothing but what
                is given is stored: for a consumer that asks for more changes than it has done.

        Raises:
            ConfigError: the feed has no consumer's name.
            TransactionStateError: this thread has a transaction open.
        """
        if self._key is None:
            raise ConfigError("only a named consumer acknowledges: changes(consumer=...)")
        if position is None:
            self._handle(self._position)
            self._store(self._handled, always=True)
        else:
            engine = self._reading()
            self._by_hand = True
            self._store(position_of(engine, moment_of(engine, position)), always=True)

    def _store(self, position: Position, *, refresh: bool = False, always: bool = False) -> None:
        """Store how far a named consumer has come, where it has come any further.

        Args:
            position: what it has passed.
            refresh: also tell that it was here, if that was told long ago.
            always: whatever there is to store.
        """
        if self._key is None:
            return
        engine = self._reading()
        now_ms = max(0, int(engine.clock() * 1000))
        with self._lock:
            if not always:
                old_ms = REFRESHED_AGE * engine.options.changes_kept * 1000
                stored = self._stored
                is_old = refresh and stored is not None and stored.time_ms + old_ms < now_ms
                if self._by_hand or not (self._moved or is_old) or engine.gate.is_mine():
                    return
            record = Record(*position, self._piece[1].floor, now_ms)
            engine.committer.commit((put(self._key, record),), full=False)
            self._stored, self._moved = record, False
            self._stored_at_s = time.monotonic()

    # -- closing ----------------------------------------------------------------------------

    def close(self) -> None:
        """End the iteration, on another thread too; what was handed out counts as passed.

        From another thread than the one that iterates, the change that this one is busy with does
        not count.
        """
        self._close(passed=self._thread in {0, threading.get_ident()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close. After an exception, the change that was handed out last does not count."""
        try:
            self._close(passed=kind is None)
        except KvsageError:
            if kind is None:
                raise

    def _close(self, *, passed: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self.interrupt()
        if passed:
            self._handle(self._position)
        with contextlib.suppress(StoreClosedError):  # closed before its feed, and not changed
            self._store(self._handled, refresh=True)

    def interrupt(self) -> None:
        """End the wait, if there is one: the store may have been closed."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def __del__(self) -> None:
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.close()


class Values:
    """Reads the values of changes, for one handle."""

    __slots__ = ("_codec", "_owner", "_reading")

    def __init__(self, reading: Callable[[], Engine], codec: Codec, owner: object) -> None:
        self._reading = reading
        self._codec = codec
        self._owner = owner  # the handle, which closes the store when nobody holds it any more

    def reader(self, position: Position, key: str, entry: LogEntry) -> Callable[[], Any]:
        """What reads the value of a PUT."""
        if not entry.flags & REFERS:
            return partial(self._codec.decode, key, entry.flags, entry.value)
        return partial(self._content, position, key, entry.flags, entry.value)

    def _content(self, position: Position, key: str, flags: int, value: bytes) -> Any:
        place = Mismatch()
        for _ in range(2):
            engine = self._reading()
            with engine.index.reading() as txn:
                assembler = Assembler(engine, txn)
                try:
                    raw = assembler.value(flags, value)
                except Missing:
                    raise _gone(key, position) from None
                except Mismatch as mismatch:
                    place = mismatch
                    continue
            if assembler.newest > position.seq:
                # Written after the change: it has the hash and the number of one that is gone.
                raise _gone(key, position)
            return self._codec.decode(key, flags, raw)
        segment, offset = place.args or (None, None)
        raise CorruptionError(
            f"the content of {key!r} is damaged", segment=segment, offset=offset
        ) from place


def _gone(key: str, position: Position) -> ChangesLostError:
    return ChangesLostError(
        f"the value of {key!r} at {position} is gone, because the key changed again: that later "
        "change is in the feed"
    )


def _nothing() -> None:
    """The value of a deletion."""


def _checked_timeout(timeout: object) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigError(f"timeout is a number of seconds, or None, not {shown(timeout)}")
    return float(timeout)
