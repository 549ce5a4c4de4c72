"""``AsyncStore``: the async twin of any store.

    AsyncReader           the reading verbs, awaited; scans in bounded chunks
    ├── AsyncSnapshot         at one point in time
    └── AsyncWriter           and the writing verbs
        ├── AsyncStore            over a store
        └── AsyncTransaction      over a transaction, on a thread of its own for its whole life

On an ``LMDBStore`` single reads run inline, since they take microseconds, and single writes join
the group commit without a thread for each. All else, and everything on another store, runs on a
bounded pool of threads.

A verb whose await is cancelled either never happens or happens whole: what had not begun is taken
back, what had begun goes on to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from kvsage.errors import ConfigError, KvsageError, StoreClosedError, TransactionStateError
from kvsage.store import PersistenceStore, Snapshot, Transaction
from kvsage.stores import registry
from kvsage.stores.embedded import LMDBStore
from kvsage.types import TTL, Capabilities, Entry, Version, override, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from kvsage.engine.snapshot import EngineSnapshot

CHUNK = 64  # items of a scan that are fetched at once
INLINE_KEYS_MAX = 256  # a load_many of more would hold up the event loop
THREADS_MOST = 32

Result = TypeVar("Result")
Held = TypeVar("Held")


class Caller(Protocol):
    """Calls a plain function somewhere, and awaits it."""

    async def __call__(self, fn: Callable[..., Result], /, *args: Any) -> Result:
        """What ``fn(*args)`` returns or raises."""
        ...


class AsyncReader(ABC):
    """The reading verbs, awaited; see ``PersistenceStore`` for what each does."""

    _view: PersistenceStore | Snapshot

    @abstractmethod
    async def _run(self, fn: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Call what may take long, off the event loop."""

    async def _read(self, fn: Callable[..., Result], *args: Any) -> Result:
        """Call what reads one key."""
        return await self._run(fn, *args)

    def _scanning(self) -> AbstractAsyncContextManager[Caller]:
        """How the chunks of one scan are fetched, one after the other."""
        return contextlib.nullcontext(self._read)

    async def load(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where it is absent."""
        return await self._read(self._view.load, key, default)

    async def exists(self, key: str) -> bool:
        """Whether ``key`` is there."""
        return await self._read(self._view.exists, key)

    async def entry(self, key: str) -> Entry | None:
        """Value, version, expiry and sizes of ``key``, or None where it is absent."""
        return await self._read(self._view.entry, key)

    async def ttl(self, key: str) -> float | None:
        """Seconds until ``key`` expires, None when it is permanent.

        Raises:
            KeyNotFoundError: the key is absent.
        """
        return await self._read(self._view.ttl, key)

    async def load_range(self, key: str, start: int = 0, stop: int | None = None) -> list[Any]:
        """The slice ``[start:stop]`` of the list under ``key``; empty where the key is absent."""
        return await self._read(self._view.load_range, key, start, stop)

    async def load_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of ``keys`` that are there."""
        chosen = list(keys)
        call = self._read if len(chosen) <= INLINE_KEYS_MAX else self._run
        return await call(self._view.load_many, chosen)

    async def count(self, prefix: str = "") -> int:
        """How many keys begin with ``prefix``."""
        return await self._run(self._view.count, prefix)

    def keys(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[str]:
        """The keys in the order of their bytes, for ``async for``; see ``Snapshot.keys``."""
        scan = partial(
            self._view.keys, prefix, start=start, stop=stop, reverse=reverse, limit=limit
        )
        return self._scan(scan)

    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[str, Any]]:
        """Keys and values, selected as by ``keys``."""
        scan = partial(
            self._view.items, prefix, start=start, stop=stop, reverse=reverse, limit=limit
        )
        return self._scan(scan)

    async def _scan(self, scan: Callable[[], Iterator[Result]]) -> AsyncIterator[Result]:
        async with self._scanning() as call:
            found = await call(scan)
            try:
                while chunk := await call(_chunk, found):
                    for item in chunk:
                        yield item
                    await asyncio.sleep(0)  # others may have waited for a chunk
            finally:
                close = getattr(found, "close", None)
                if close is not None:
                    await call(close)


class AsyncWriter(AsyncReader):
    """And the writing verbs."""

    _target: PersistenceStore | Transaction  # the view, which can also be written to

    async def _change(self, fn: Callable[..., Result], *args: Any) -> Result:
        """Call what writes and may take long."""
        return await self._run(fn, *args)

    @abstractmethod
    async def _write(self, verb: str, *args: Any, **options: Any) -> bool:
        """Call one of the single writes."""

    async def save(
        self, key: str, value: Any, ttl: TTL | None = None, *, if_version: Version | None = None
    ) -> bool:
        """Save ``value`` under ``key``; see ``PersistenceStore.save``."""
        if if_version is None:
            return await self._write("save", key, value, ttl)
        return await self._write("save", key, value, ttl, if_version=if_version)

    async def add(self, key: str, value: Any, ttl: TTL | None = None) -> bool:
        """Save only where ``key`` is absent; whether it was."""
        return await self._write("add", key, value, ttl)

    async def delete(self, key: str) -> bool:
        """Remove ``key``; whether it was there."""
        return await self._write("delete", key)

    async def touch(self, key: str, ttl: TTL | None) -> bool:
        """Let ``key`` expire after ``ttl`` from now, never when None; whether it was there."""
        return await self._write("touch", key, ttl)

    async def update(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace the value by ``fn(value)``, which is a plain function, called on a thread."""
        return await self._change(self._target.update, key, fn, default)

    async def increment(self, key: str, delta: int = 1) -> int:
        """Add ``delta`` to an integer, 0 where the key is absent; the new value."""
        return await self._change(self._target.increment, key, delta)

    async def append(self, key: str, item: Any) -> int:
        """Add ``item`` to the end of a list, empty where absent; the new length."""
        return await self._change(self._target.append, key, item)

    async def extend(self, key: str, items: Iterable[Any]) -> int:
        """Add all ``items`` to the end of a list; the new length."""
        return await self._change(self._target.extend, key, list(items))

    async def save_many(self, mapping: Mapping[str, Any], ttl: TTL | None = None) -> int:
        """Save every pair; how many. Together or not at all where the store has transactions."""
        return await self._change(self._target.save_many, dict(mapping), ttl)

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove every one of ``keys``; how many were there."""
        return await self._change(self._target.delete_many, list(keys))

    async def clear(self, prefix: str = "") -> int:
        """Remove every key that begins with ``prefix``; how many there were."""
        return await self._change(self._target.clear, prefix)


class AsyncStore(AsyncWriter):
    """A store whose verbs are awaited.

    Args:
        store: any store; it is closed with this one.
        threads: how many may work on it at once, transactions counted apart; None for
            ``min(32, CPUs + 4)``.

    Raises:
        ConfigError: not a store, or a number of threads that cannot be meant.
    """

    def __init__(self, store: PersistenceStore, *, threads: int | None = None) -> None:
        if not isinstance(store, PersistenceStore):
            raise ConfigError(f"an AsyncStore needs a store, not {shown(store)}")
        if threads is None:
            threads = min(THREADS_MOST, (os.cpu_count() or 1) + 4)
        if type(threads) is not int or threads < 1:
            raise ConfigError(f"threads is a whole number from 1, not {shown(threads)}")
        self.store = store
        self._view = self._target = store
        self._embedded = store if isinstance(store, LMDBStore) else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvsage-async")
        self._threads = threads
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._inboxes: dict[asyncio.AbstractEventLoop, Inbox] = {}
        self._closing: Future[None] | None = None

    @classmethod
    async def open(
        cls, url: str | os.PathLike[str], *, threads: int | None = None, **options: Any
    ) -> Self:
        """The store that a URL or a path names, as ``kvsage.open`` finds it, opened on a thread.

        Args:
            url: see ``kvsage.open``.
            threads: see ``AsyncStore``.
            **options: options of the store.
        """
        future = _on_own_thread(partial(registry.open, url, **options))
        try:
            return cls(await asyncio.shield(asyncio.wrap_future(future)), threads=threads)
        except BaseException:
            future.add_done_callback(_close_opened)  # also one that comes after a cancellation
            raise

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do beyond the four verbs that each one has."""
        return self.store.capabilities

    @override
    def __repr__(self) -> str:
        return f"AsyncStore({self.store!r})"

    async def stats(self) -> Any:
        """What the store holds and costs, as far as this kind of store can tell."""
        return await self._run(self.store.stats)

    async def run(self, fn: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Call ``fn(*args, **options)`` on a thread of the pool: for verbs that have no twin.

        For example ``await store.run(store.store.verify, deep=True)``.
        """
        return await self._run(fn, *args, **options)

    async def transact(self, fn: Callable[[Transaction], Result], retries: int = 10) -> Result:
        """Run the plain function ``fn`` in a transaction; see ``PersistenceStore.transact``."""
        return await self._change(self.store.transact, fn, retries)

    def snapshot(self) -> AsyncSnapshot:
        """The reading verbs at one point in time, until the ``async with`` block ends."""
        return AsyncSnapshot(self)

    def transaction(self) -> AsyncTransaction:
        """All verbs as one unit: kept when the ``async with`` block ends, none on an exception.

        It stays on one thread for its whole life, as stores ask. In its block, the writing verbs of
        the store itself are refused, since they would wait for its end.
        """
        return AsyncTransaction(self)

    async def enter(self, thread: OwnThread[Held]) -> Held:
        """Begin a transaction on a thread of its own."""
        self._refuse_nested()
        if self._closing is not None:
            raise StoreClosedError("the store is closed")
        turns = self._turns_here()
        await turns.acquire()
        try:
            return await thread.__aenter__()
        except BaseException:
            turns.release()
            raise

    async def leave(
        self,
        thread: OwnThread[Transaction],
        raised: tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
    ) -> None:
        """End a transaction."""
        try:
            await thread.__aexit__(*raised)
        finally:
            self._turns_here().release()

    def _turns_here(self) -> asyncio.Semaphore:
        """What bounds the transactions of the running loop; a semaphore belongs to one loop."""
        loop = asyncio.get_running_loop()
        turns = self._turns.get(loop)
        if turns is None:
            for ended in [known for known in self._turns if known.is_closed()]:
                del self._turns[ended]
            turns = self._turns[loop] = asyncio.Semaphore(self._threads)
        return turns

    # -- closing ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Close the store, behind the verbs that are on their way; a second close does nothing."""
        self._refuse_nested()
        if self._closing is None or (self._closing.done() and self._closing.exception()):
            self._closing = _on_own_thread(self._close)
        await _to_the_end(self._closing)

    def _close(self) -> None:
        self._pool.shutdown()
        self.store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # -- how verbs are called ---------------------------------------------------------------

    def _refuse_nested(self) -> None:
        transaction = _current.get()
        while transaction is not None:
            if transaction.of is self and transaction.active:
                raise TransactionStateError(
                    "this task has a transaction open on the store: write through it, or end it "
                    "first"
                )
            transaction = transaction.outer

    def _submit(self, fn: Callable[..., Result], *args: Any, **options: Any) -> Future[Result]:
        if self._closing is not None:
            raise StoreClosedError("the store is closed")
        return self._pool.submit(fn, *args, **options)

    @override
    async def _run(self, fn: Callable[..., Result], *args: Any, **options: Any) -> Result:
        return await asyncio.wrap_future(self._submit(fn, *args, **options))

    @override
    async def _read(self, fn: Callable[..., Result], *args: Any) -> Result:
        if self._embedded is not None:
            return fn(*args)
        return await self._run(fn, *args)

    @override
    async def _write(self, verb: str, *args: Any, **options: Any) -> bool:
        self._refuse_nested()
        if self._embedded is None:
            result: bool = await self._run(getattr(self._target, verb), *args, **options)
            return result
        if self._closing is not None:
            raise StoreClosedError("the store is closed")
        future = self._embedded.later(verb, *args, **options)  # type: ignore[arg-type]  # one of its verbs
        return await self._inbox().outcome(future)

    def _inbox(self) -> Inbox:
        loop = asyncio.get_running_loop()
        inbox = self._inboxes.get(loop)
        if inbox is None:
            self._inboxes = {known: kept for known, kept in self._inboxes.items() if kept.open}
            inbox = self._inboxes[loop] = Inbox(loop)
        return inbox

    @override
    async def _change(self, fn: Callable[..., Result], *args: Any) -> Result:
        self._refuse_nested()
        return await self._run(fn, *args)

    @override
    def _scanning(self) -> AbstractAsyncContextManager[Caller]:
        if self._embedded is not None:
            return super()._scanning()
        return _scan_on(OwnThread(contextlib.nullcontext, StoreClosedError("the scan has ended")))


class AsyncSnapshot(AsyncReader):
    """The reading verbs at one point in time; made by ``AsyncStore.snapshot``."""

    def __init__(self, of: AsyncStore) -> None:
        self._of = of
        over = StoreClosedError("the snapshot is closed")
        self._thread: OwnThread[Snapshot] = OwnThread(of.store.snapshot, over)
        self._embedded: EngineSnapshot | None = None

    async def __aenter__(self) -> Self:
        store = self._of.store
        if isinstance(store, LMDBStore):
            self._view = self._embedded = store.snapshot()
        else:
            self._view = await self._thread.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        view = self._embedded
        if view is None:
            await self._thread.__aexit__(kind, error, trace)
        elif view.enter(wait=False):
            try:
                view.close()
            finally:
                view.leave()
        else:
            await _to_the_end(_on_own_thread(view.close))

    @override
    async def _run(self, fn: Callable[..., Result], *args: Any, **options: Any) -> Result:
        call = self._thread.run if self._embedded is None else self._of.run
        return await call(fn, *args, **options)

    @override
    async def _read(self, fn: Callable[..., Result], *args: Any) -> Result:
        view = self._embedded
        if view is None:
            return await self._thread.run(fn, *args)
        # Something long may have it, on a thread: the event loop goes on meanwhile. Reading itself
        # stays here, so that a scan that is cancelled is not running on some thread.
        while not view.enter(wait=False):
            await self._run(_wait_for_turn, view)
        try:
            return fn(*args)
        finally:
            view.leave()


class AsyncTransaction(AsyncWriter):
    """All verbs as one unit; made by ``AsyncStore.transaction``."""

    def __init__(self, of: AsyncStore) -> None:
        self.of = of
        self.outer: AsyncTransaction | None = None
        self.active = False
        over = TransactionStateError("the transaction has ended")
        self._thread: OwnThread[Transaction] = OwnThread(of.store.transaction, over)

    async def __aenter__(self) -> Self:
        self._transaction = self._view = self._target = await self.of.enter(self._thread)
        self.outer = _current.get()
        self.active = True
        _current.set(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.active = False
        if _current.get() is self:
            _current.set(self.outer)
        await self.of.leave(self._thread, (kind, error, trace))

    async def replace(self, key: str, value: Any) -> None:
        """Save ``value`` under a key that keeps its expiry; permanent where it was absent."""
        await self._run(self._transaction.replace, key, value)

    @override
    async def _run(self, fn: Callable[..., Result], *args: Any, **options: Any) -> Result:
        return await self._thread.run(fn, *args, **options)

    @override
    async def _write(self, verb: str, *args: Any, **options: Any) -> bool:
        result: bool = await self._run(getattr(self._target, verb), *args, **options)
        return result


_current: ContextVar[AsyncTransaction | None] = ContextVar("kvsage_transaction", default=None)


class OwnThread(Generic[Held]):
    """A context manager entered, used and left on one thread, which lives as long.

    Args:
        make: makes the context manager, on that thread.
        over: what is raised where it is used after its end.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Held]], over: KvsageError) -> None:
        self._make = make
        self._over = over
        self._worker: ThreadPoolExecutor | None = None
        self._manager: AbstractContextManager[Held] | None = None
        self._begun = False

    async def __aenter__(self) -> Held:
        if self._begun:
            raise TransactionStateError("it is entered once; begin another")
        self._begun = True
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kvsage-async")
        try:
            return await self.run(self._enter)
        except BaseException as error:
            # Where it was cancelled it may yet come in; then it leaves at once.
            self._end(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await _to_the_end(self._end(kind, error, trace))

    def _enter(self) -> Held:
        manager = self._make()
        held = manager.__enter__()
        self._manager = manager
        return held

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.__exit__(kind, error, trace)

    def _end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Future[None]:
        worker, self._worker = self._worker, None
        assert worker is not None
        left = worker.submit(self._leave, kind, error, trace)
        worker.shutdown(wait=False)
        return left

    async def run(self, fn: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Call ``fn`` on the thread."""
        if self._worker is None:
            raise self._over
        return await asyncio.wrap_future(self._worker.submit(fn, *args, **options))


@contextlib.asynccontextmanager
async def _scan_on(thread: OwnThread[None]) -> AsyncIterator[Caller]:
    async with thread:
        yield thread.run


class Inbox:
    """Outcomes on their way from the thread that commits to one event loop, many at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: deque[tuple[asyncio.Future[bool], Future[bool]]] = deque()
        self._announced = False

    @property
    def open(self) -> bool:
        """Whether its event loop can still be reached."""
        return not self._loop.is_closed()

    async def outcome(self, future: Future[bool]) -> bool:
        """What the future holds; it is withdrawn where the await is cancelled."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        future.add_done_callback(partial(self._arrive, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            future.cancel()
            raise

    def _arrive(self, waiter: asyncio.Future[bool], future: Future[bool]) -> None:
        self._arrived.append((waiter, future))
        if not self._announced:
            self._announced = True
            with contextlib.suppress(RuntimeError):  # the event loop is gone
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._announced = False  # first, so that what comes from here on is announced again
        while self._arrived:
            waiter, future = self._arrived.popleft()
            if waiter.done():
                continue
            error = future.exception()
            if error is None:
                waiter.set_result(future.result())
            else:
                waiter.set_exception(error)


def _chunk(found: Iterator[Result]) -> list[Result]:
    return list(islice(found, CHUNK))


def _wait_for_turn(view: EngineSnapshot) -> None:
    view.enter(wait=True)
    view.leave()


def _on_own_thread(fn: Callable[[], Result]) -> Future[Result]:
    thread = ThreadPoolExecutor(1, thread_name_prefix="kvsage-async")
    future = thread.submit(fn)
    thread.shutdown(wait=False)
    return future


def _close_opened(future: Future[PersistenceStore]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


async def _to_the_end(future: Future[None]) -> None:
    """Wait for what must not be left half-way; a cancellation counts once it is over."""
    ending = asyncio.wrap_future(future)
    cancelled = None
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        ending.exception()
        raise cancelled
    ending.result()
