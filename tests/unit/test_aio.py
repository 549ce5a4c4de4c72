"""AsyncStore: on an embedded store, on one with four verbs, on one that is slow."""

import asyncio
import math
import os
import threading
import time
from contextlib import contextmanager

import pytest

import kvsage
from kvsage import (
    AsyncStore,
    ConfigError,
    KeyNotFoundError,
    LMDBStore,
    PersistenceStore,
    StoreClosedError,
    StoreFullError,
    StoreLockedError,
    TransactionalStore,
    TransactionStateError,
    UnsupportedError,
    ValueTooLargeError,
)
from tests.contract.test_plain_store import FourVerbs

PATIENCE_S = 60  # bounds a wait that a fault would make endless; no assertion depends on it


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


@pytest.fixture
def place(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def embedded(place):
    with LMDBStore(place, sync_interval=3600, upkeep_interval=math.inf) as store:
        yield store
        if not store._closed:
            assert store.verify(deep=True).ok
            assert not store._engine.gate.waiting


class Slow(FourVerbs):
    """A store whose saves wait until they are let go."""

    def __init__(self):
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.threads = set()

    def save(self, key, value, ttl=None):
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.let_go.acquire(timeout=PATIENCE_S)
        return super().save(key, value, ttl)


async def off(fn, *args, **options):
    """Wait for something without holding up the event loop."""
    return await asyncio.to_thread(fn, *args, **options)


# -- every verb ---------------------------------------------------------------------------------


async def every_verb(store):
    assert await store.save("a", 1) is True
    assert await store.load("a") == 1
    assert await store.load("absent", "default") == "default"
    assert await store.exists("a") is True
    assert await store.add("a", 2) is False
    assert await store.add("b", 2) is True
    entry = await store.entry("a")
    assert entry.value == 1
    assert await store.save("a", 3, if_version=entry.version) is True
    assert await store.save("a", 4, if_version=entry.version) is False
    assert await store.update("a", lambda value: value + 1) == 4
    assert await store.increment("a", 2) == 6
    assert await store.touch("a", None) is True
    assert await store.ttl("a") is None
    with pytest.raises(KeyNotFoundError):
        await store.ttl("absent")
    assert await store.append("list", 1) == 1
    assert await store.extend("list", iter([2, 3])) == 3
    assert await store.load_range("list", 1) == [2, 3]
    assert await store.save_many({f"m{n}": n for n in range(5)}) == 5
    assert await store.load_many(iter(["m1", "m2", "absent"])) == {"m1": 1, "m2": 2}
    assert await store.delete_many(iter(["m0", "absent"])) == 1
    assert await store.count("m") == 4
    assert [key async for key in store.keys("m", reverse=True, limit=2)] == ["m4", "m3"]
    assert [pair async for pair in store.items("m", start="m3")] == [("m3", 3), ("m4", 4)]
    assert await store.clear("m") == 4
    assert await store.delete("b") is True
    assert await store.delete("b") is False


def test_every_verb(embedded):
    async def main():
        store = AsyncStore(embedded)
        await every_verb(store)
        assert (await store.stats()).keys == 2
        assert await store.transact(lambda tx: tx.increment("a")) == 7
        assert (await store.run(embedded.verify, deep=True)).ok
        assert store.capabilities == embedded.capabilities

    run(main())


def test_every_verb_in_a_transaction(embedded):
    async def main():
        store = AsyncStore(embedded)
        async with store.transaction() as tx:
            await every_verb(tx)
            await tx.replace("a", 9)
            assert await store.load("a") is None  # nobody else sees it yet
        assert await store.load("a") == 9

    run(main())


def test_reads_of_a_snapshot_stay_as_they_were(embedded):
    async def main():
        store = AsyncStore(embedded)
        await store.save_many({"a": 1, "b": 2})
        async with store.snapshot() as view:
            await store.delete("a")
            assert await view.load("a") == 1
            assert await view.exists("a")
            assert (await view.entry("a")).value == 1
            assert await view.ttl("a") is None
            assert await view.count() == 2
            assert await view.load_many(["a", "b"]) == {"a": 1, "b": 2}
            assert [key async for key in view.keys("")] == ["a", "b"]
        assert not await store.exists("a")
        with pytest.raises(StoreClosedError):
            await view.load("a")

    run(main())


@contextmanager
def busy(snapshot):
    """On a thread, something that takes long with a snapshot, until the block ends."""
    begun, over = threading.Event(), threading.Event()

    def work():
        with snapshot._lock:
            begun.set()
            assert over.wait(PATIENCE_S)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(PATIENCE_S)
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_snapshot_that_is_busy_does_not_hold_the_event_loop(embedded):
    async def scan(view):
        return [item async for item in view.items()]

    async def main():
        store = AsyncStore(embedded)
        await store.save_many({"a": 1, "b": 2})
        async with store.snapshot() as view:
            with busy(view._view):
                tasks = [asyncio.ensure_future(view.load("a")) for _ in range(20)]
                tasks.append(asyncio.ensure_future(scan(view)))
                cancelled = asyncio.ensure_future(scan(view))
                await asyncio.sleep(0)  # all have begun, and the event loop goes on
                cancelled.cancel()
                done, _ = await asyncio.wait([*tasks, cancelled], return_when="FIRST_COMPLETED")
                assert done == {cancelled}
                assert await store.load("b") == 2
            assert await asyncio.gather(*tasks) == [*[1] * 20, [("a", 1), ("b", 2)]]
            with busy(view._view):
                leaving = asyncio.ensure_future(view.__aexit__(None, None, None))
                await asyncio.sleep(0)
                assert not leaving.done()
            await leaving
        with pytest.raises(StoreClosedError):
            await view.load("a")
        assert not [reader for reader in embedded.stats().readers if reader.transaction]

    run(main())


def test_a_store_with_four_verbs():
    async def main():
        plain = FourVerbs()
        async with AsyncStore(plain, threads=2) as store:
            assert await store.save("a", 1)
            assert await store.save_many({"b": 2, "c": [1, 2]}) == 2
            assert await store.load("a") == 1
            assert await store.exists("a")
            assert await store.load_many(["a", "b", "absent"]) == {"a": 1, "b": 2}
            assert await store.load_range("c", 1) == [2]
            assert await store.delete("a")
            assert await store.delete_many(["b", "absent"]) == 1
            for verb in (store.add("k", 1), store.touch("k", 1), store.count(), store.stats()):
                with pytest.raises(UnsupportedError, match="FourVerbs has no"):
                    await verb
            for block in (store.transaction(), store.snapshot()):
                with pytest.raises(UnsupportedError, match="FourVerbs has no"):
                    await block.__aenter__()
            with pytest.raises(UnsupportedError):
                await anext(store.keys())
        assert plain.closed == 1

    run(main())


def test_scans_of_another_store_stay_each_on_a_thread_of_its_own():
    threads = []

    class Watched(FourVerbs):
        def keys(self, *_, **__):
            mine = set()
            threads.append(mine)
            for key in sorted(self.kept):
                mine.add(threading.get_ident())
                yield key

    async def main():
        plain = Watched()
        plain.kept = {f"k{number:03}": number for number in range(200)}
        async with AsyncStore(plain) as store:
            keys, items = store.keys(), store.items()
            pairs = [(await anext(keys), await anext(items)) for _ in range(200)]
            assert pairs == [(key, (key, value)) for key, value in plain.kept.items()]
            (first,), (second,) = threads
            assert len({first, second, threading.get_ident()}) == 3
            await keys.aclose()
            await items.aclose()

    run(main())


# -- group commit -------------------------------------------------------------------------------


def test_a_thousand_tasks_share_few_batches_and_one_thread(embedded):
    async def main():
        store = AsyncStore(embedded)
        commits = embedded.stats().commits
        before = threading.active_count()
        saves = [asyncio.create_task(store.save(f"k{n:04}", n)) for n in range(1000)]
        assert await asyncio.gather(*saves) == [True] * 1000
        assert embedded.stats().commits - commits < 100
        assert threading.active_count() <= before + 1
        assert [value async for _, value in store.items()] == list(range(1000))

    run(main())


def test_what_one_task_queues_takes_place_in_order(embedded):
    async def main():
        store = AsyncStore(embedded)
        writes = [store.save("k", 1), store.delete("k"), store.add("k", 2), store.add("k", 3)]
        tasks = [asyncio.create_task(write) for write in writes]
        assert await asyncio.gather(*tasks) == [True, True, True, False]
        assert await store.load("k") == 2

    run(main())


def test_threads_and_tasks_meet(embedded):
    async def main():
        store = AsyncStore(embedded)
        threads = [
            off(lambda n=n: [embedded.save(f"t{n}", m) for m in range(50)]) for n in range(4)
        ]
        tasks = [store.save(f"a{n}", n) for n in range(200)]
        await asyncio.gather(*threads, *tasks)
        assert await store.count("t") == 4
        assert await store.count("a") == 200
        assert {await store.load(f"t{n}") for n in range(4)} == {49}

    run(main())


def test_an_error_reaches_the_one_it_belongs_to(place):
    async def main():
        async with AsyncStore(LMDBStore(place, value_bytes_max=1000)) as store:
            good, bad = store.save("good", 1), store.save("bad", "x" * 2000)
            results = await asyncio.gather(good, bad, return_exceptions=True)
            assert results[0] is True
            assert isinstance(results[1], ValueTooLargeError)

    run(main())


# -- later --------------------------------------------------------------------------------------


@contextmanager
def held(store):
    """The gate taken, on this thread of the test's own."""
    gate = store._engine.gate
    taken, over = threading.Event(), threading.Event()

    def hold():
        gate.enter()
        taken.set()
        over.wait(PATIENCE_S)
        gate.leave()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert taken.wait(PATIENCE_S)
    try:
        yield
    finally:
        over.set()
        holder.join(PATIENCE_S)


def test_later_goes_on_and_is_told(embedded):
    with held(embedded):
        futures = [
            embedded.later("save", "a", 1),
            embedded.later("add", "b", 2, ttl=1000),
            embedded.later("delete", "absent"),
            embedded.later("touch", "absent", 5),
        ]
        assert not any(future.done() for future in futures)
    assert [future.result(PATIENCE_S) for future in futures] == [True, True, False, False]
    assert dict(embedded.items()) == {"a": 1, "b": 2}
    with pytest.raises(UnsupportedError, match="increment"):
        embedded.later("increment", "a")
    with pytest.raises(ValueError, match="key"):
        embedded.later("save", "", 1)


def test_what_is_cancelled_before_it_was_taken_never_happens(embedded):
    with held(embedded):
        first, second, third = (embedded.later("save", f"k{n}", n) for n in range(3))
        assert second.cancel()
    assert first.result(PATIENCE_S)
    assert third.result(PATIENCE_S)
    assert list(embedded.keys()) == ["k0", "k2"]
    assert not third.cancel()


def test_a_callback_may_write_to_the_store(embedded):
    wrote = threading.Event()

    def write(_):
        embedded.save("from the callback", 1)
        wrote.set()

    with held(embedded):
        embedded.later("save", "k", 1).add_done_callback(write)
    assert wrote.wait(PATIENCE_S)
    assert embedded.load("from the callback") == 1


def test_a_close_lets_what_was_queued_happen(place):
    store = LMDBStore(place)
    with held(store):
        future = store.later("save", "k", 1)
        closer = threading.Thread(target=store.close, daemon=True)
        closer.start()
    closer.join(PATIENCE_S)
    assert future.result(0) is True
    with pytest.raises(StoreClosedError):
        store.later("save", "k", 2)
    assert not [t for t in threading.enumerate() if t.name == "kvsage-committer"]
    with LMDBStore(place) as again:
        assert again.load("k") == 1
        assert again.later("save", "k", 2).result(PATIENCE_S)
        assert again.verify(deep=True).ok


def test_later_waits_no_longer_than_the_timeout(place):
    with LMDBStore(place, lock_timeout=0, upkeep_interval=math.inf) as store:
        with held(store):
            error = store.later("save", "k", 1).exception(PATIENCE_S)
        assert isinstance(error, StoreLockedError)
        assert not store.exists("k")
        assert store.save("k", 2)
        assert store.verify(deep=True).ok


def test_later_is_refused_inside_a_transaction(embedded):
    with embedded.transaction(), pytest.raises(TransactionStateError):
        embedded.later("save", "k", 1)


# -- cancelling ---------------------------------------------------------------------------------


async def waiting(store):
    """Until something stands in the gate's queue."""

    def look():
        deadline = time.monotonic() + PATIENCE_S
        while not store._engine.gate.waiting:
            assert time.monotonic() < deadline
            os.sched_yield()

    await off(look)


def test_a_save_cancelled_in_the_queue_never_happens(embedded):
    async def main():
        store = AsyncStore(embedded)
        with held(embedded):
            kept = asyncio.create_task(store.save("kept", 1))
            cancelled = asyncio.create_task(store.save("cancelled", 1))
            await waiting(embedded)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        assert await kept is True
        assert await store.count() == 1

    run(main())


def test_a_save_cancelled_on_its_way_to_disk_is_whole(embedded):
    flush, reached, let_go = embedded._engine.flush_log, threading.Event(), threading.Event()

    def slow(fd, **options):
        reached.set()
        assert let_go.wait(PATIENCE_S)
        flush(fd, **options)

    async def main():
        store = AsyncStore(embedded)
        embedded._engine.flush_log = slow
        save = asyncio.create_task(store.save("k", {"whole": True}))
        assert await off(reached.wait, PATIENCE_S)
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await save
        let_go.set()
        assert await store.add("behind", 1)
        assert await store.load("k") == {"whole": True}

    run(main())


def test_a_slow_store_is_cancelled_between_its_saves_and_not_within():
    async def main():
        slow = Slow()
        store = AsyncStore(slow, threads=1)
        first = asyncio.create_task(store.save("first", 1))
        second = asyncio.create_task(store.save("second", 2))
        assert await off(slow.begun.acquire, timeout=PATIENCE_S)
        for save in (first, second):
            save.cancel()
            with pytest.raises(asyncio.CancelledError):
                await save
        slow.let_go.release()
        await store.close()
        assert slow.kept == {"first": 1}
        assert slow.closed == 1

    run(main())


def test_the_pool_is_bounded_and_the_event_loop_goes_on():
    async def main():
        slow = Slow()
        store = AsyncStore(slow, threads=2)
        saves = [asyncio.create_task(store.save(f"k{n}", n)) for n in range(6)]
        assert await off(slow.begun.acquire, timeout=PATIENCE_S)
        slow.let_go.release(6)
        assert await asyncio.gather(*saves) == [True] * 6
        assert len(slow.threads) <= 2
        await store.close()

    run(main())


# -- transactions -------------------------------------------------------------------------------


def test_a_transaction_stays_on_one_thread_and_is_all_or_nothing(place):
    threads = []

    async def fail(tx):
        await tx.save("a", 1)
        raise ZeroDivisionError

    class Watched(LMDBStore):
        def transaction(self):
            threads.append({threading.get_ident()})
            return super().transaction()

    async def main():
        async with AsyncStore(Watched(place)) as store:
            with pytest.raises(ZeroDivisionError):
                async with store.transaction() as tx:
                    await fail(tx)
            assert not await store.exists("a")
            async with store.transaction() as tx:
                await tx.update("a", lambda _: threads[-1].add(threading.get_ident()) or 1)
                await tx.update("b", lambda _: threads[-1].add(threading.get_ident()) or 2)
            assert await store.load_many(["a", "b"]) == {"a": 1, "b": 2}
            with pytest.raises(TransactionStateError, match="has ended"):
                await tx.save("c", 1)

    run(main())
    assert [len(used) for used in threads] == [1, 1]
    assert {threading.get_ident()} not in threads


def test_inside_its_transaction_a_task_is_refused_what_would_wait_for_itself(embedded):
    async def main():
        store = AsyncStore(embedded)
        async with store.transaction() as tx:
            await tx.save("k", 1)
            for write in (store.save("k", 2), store.increment("n"), store.close()):
                with pytest.raises(TransactionStateError, match="this task"):
                    await write
            with pytest.raises(TransactionStateError, match="this task"):
                await store.transaction().__aenter__()
            assert await store.load("k") is None
        with pytest.raises(TransactionStateError, match="once"):
            await tx.__aenter__()
        assert await store.save("k2", 2)

    run(main())


def test_two_tasks_take_turns(embedded):
    async def transfer(store):
        async with store.transaction() as tx:
            value = await tx.load("n", 0)
            await asyncio.sleep(0)
            await tx.save("n", value + 1)

    async def main():
        store = AsyncStore(embedded, threads=2)
        await asyncio.gather(*(transfer(store) for _ in range(20)))
        assert await store.load("n") == 20

    run(main())


def test_a_cancelled_transaction_is_rolled_back_and_lets_the_next_one_in(embedded):
    async def stuck(store, reached):
        async with store.transaction() as tx:
            await tx.save("k", 1)
            reached.set()
            await asyncio.Event().wait()

    async def main():
        store = AsyncStore(embedded)
        reached = asyncio.Event()
        task = asyncio.create_task(stuck(store, reached))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.add("k", 2)

    run(main())


def test_one_cancelled_while_it_waits_for_its_turn_is_never_in(embedded):
    async def main():
        store = AsyncStore(embedded)
        with held(embedded):
            transaction = store.transaction()  # kept, so that no collector ends it
            entering = asyncio.create_task(transaction.__aenter__())
            await waiting(embedded)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
        assert await store.save("k", 1)

    run(main())


def test_a_commit_that_has_begun_comes_to_its_end_before_the_cancellation(embedded):
    flush, reached, let_go = embedded._engine.flush_log, threading.Event(), threading.Event()

    def slow(fd, **options):
        reached.set()
        assert let_go.wait(PATIENCE_S)
        flush(fd, **options)

    async def work(store):
        async with store.transaction() as tx:
            await tx.save("a", 1)
            await tx.save("b", 2)
            embedded._engine.flush_log = slow

    async def main():
        store = AsyncStore(embedded)
        task = asyncio.create_task(work(store))
        assert await off(reached.wait, PATIENCE_S)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.load_many(["a", "b"]) == {"a": 1, "b": 2}

    run(main())


def test_a_transaction_and_a_snapshot_of_another_store():
    class Pretending(TransactionalStore, FourVerbs):
        """Transactions that remember their thread and how they ended."""

        def __init__(self):
            super().__init__()
            self.ended = []

        @contextmanager
        def transaction(self):
            thread = threading.get_ident()
            try:
                yield self
            except BaseException as error:
                self.ended.append((type(error), threading.get_ident() == thread))
                raise
            self.ended.append((None, threading.get_ident() == thread))

        snapshot = transaction

    async def main():
        plain = Pretending()
        async with AsyncStore(plain) as store:
            async with store.transaction() as tx:
                await tx.save("k", 1)
            async with store.snapshot() as view:
                assert await view.load("k") == 1
            with pytest.raises(StoreClosedError):
                await view.load("k")
            with pytest.raises(StoreFullError):
                async with store.transaction():
                    raise StoreFullError
        assert plain.ended == [(None, True), (None, True), (StoreFullError, True)]

    run(main())


# -- opening and closing ------------------------------------------------------------------------


def test_open_by_url_and_close(place):
    async def main():
        async with await AsyncStore.open(f"lmdb://{place}", durability="relaxed") as store:
            assert store.store.options.durability == "relaxed"
            assert await store.save("k", 1)
            assert repr(store) == f"AsyncStore({store.store!r})"
        await store.close()
        for verb in (store.save("k", 2), store.load("k"), store.count(), store.increment("n")):
            with pytest.raises(StoreClosedError):
                await verb
        with pytest.raises(StoreClosedError):
            await store.transaction().__aenter__()
        with pytest.raises(ConfigError):
            await AsyncStore.open("nothing://here")

    run(main())
    with LMDBStore(place) as again:
        assert again.load("k") == 1
        assert again.verify(deep=True).ok


def test_it_serves_one_event_loop_after_another(embedded):
    store = AsyncStore(embedded)
    for number in range(3):
        assert run(store.save("k", number))
        assert run(store.load("k")) == number
    assert len(store._inboxes) == 1


def test_what_it_is_made_of_is_checked(embedded):
    with pytest.raises(ConfigError, match="needs a store"):
        AsyncStore({})
    for threads in (0, -1, True, 1.5, "4"):
        with pytest.raises(ConfigError, match="threads"):
            AsyncStore(embedded, threads=threads)


def test_it_has_every_verb_of_the_contract():
    verbs = {name for name in vars(PersistenceStore) if not name.startswith("_")}
    assert verbs - set(dir(AsyncStore)) == set()
    with pytest.raises(AttributeError, match="nothing"):
        _ = kvsage.nothing
