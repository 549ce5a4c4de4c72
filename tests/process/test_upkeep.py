"""Compaction, checkpoints and sweeps among several processes, readers and writers beside them."""

import math
import os

import pytest

from kvsage import LMDBStore, StoreLockedError
from kvsage.engine import compaction
from kvsage.engine.pace import UNPACED
from kvsage.log.segment import list_files

QUIET = {"durability": "relaxed", "upkeep_interval": math.inf, "segment_bytes_max": 65536}
NOISE = os.urandom(1500)
ACCOUNTS, TOTAL = 12, 1200

OPEN = """
import math
QUIET = {"durability": "relaxed", "upkeep_interval": math.inf, "segment_bytes_max": 65536}
store = LMDBStore(path, **QUIET)
"""


@pytest.fixture
def store(path):
    with LMDBStore(path, **QUIET) as store:
        yield store


def fill(store, number, keys=60):
    """Two thirds garbage, several files, some deletions."""
    for _ in range(3):
        for key in range(keys):
            store.save(f"k{key:03}", [number, key, NOISE])
    for key in range(0, keys, 5):
        store.delete(f"k{key:03}")
    return dict(store.items())


def only_the_log_is_left(store):
    stats = store.stats()
    assert set(list_files(store._engine.disk, store.path / "log")) == {
        segment.segment for segment in stats.segments
    }
    assert not list(store.path.rglob("*.tmp"))


# -- one at a time ------------------------------------------------------------------------------

HOLD = (
    OPEN
    + """
with store._engine.upkeep.lock.waiting():
    say("held")
    hear()
store.close()
"""
)


def test_one_waits_while_another_process_compacts(path, child, store):
    expected = fill(store, 1)
    other = child(HOLD, path)
    assert other.line() == "held"
    files = len(store.stats().segments)
    store._engine.upkeep.look(UNPACED)  # somebody is at it: nothing to do here
    assert len(store.stats().segments) == files
    other.tell("let go")
    other.finish()
    assert store.compact().files_compacted > 0
    assert dict(store.items()) == expected
    only_the_log_is_left(store)


@pytest.mark.parametrize("verb", ["compact", "checkpoint"])
def test_the_wait_ends_with_an_error(path, child, verb):
    with LMDBStore(path, lock_timeout=0.05, **QUIET) as store:
        expected = fill(store, 1, keys=5)
        other = child(HOLD, path)
        assert other.line() == "held"
        with pytest.raises(StoreLockedError, match="another process is compacting"):
            getattr(store, verb)()
        # Whoever reads and writes does not notice.
        store.save("k", 1)
        assert dict(store.items()) == {**expected, "k": 1}
        other.kill()  # its lock goes with it
        getattr(store, verb)()


def test_the_wait_for_another_thread_ends_with_an_error(path):
    with LMDBStore(path, lock_timeout=0.05, **QUIET) as store:
        store.save("k", 1)
        with (
            store._engine.upkeep.lock.waiting(),
            pytest.raises(StoreLockedError, match="another thread is compacting"),
        ):
            store.compact()
        store.compact()


COMPACT = (
    OPEN
    + """
say("ready")
while hear() == "go":
    reports = [store.compact() for _ in range(3)]
    say(sum(report.files_compacted for report in reports))
store.close()
"""
)


def test_several_processes_compact_at_once(path, child, store):
    others = [child(COMPACT, path) for _ in range(3)]
    for one in others:
        assert one.line() == "ready"
    for number in range(4):
        expected = fill(store, number)
        for one in others:
            one.tell("go")
        store.compact()
        for one in others:
            one.line()
        assert dict(store.items()) == expected
    for one in others:
        one.tell("enough")
        one.finish()
    store.compact()
    only_the_log_is_left(store)
    assert store.verify(deep=True).problems == ()


def test_a_process_compacts_while_another_fills(path, child, store):
    compactor = child(COMPACT, path)
    assert compactor.line() == "ready"
    for number in range(4):
        compactor.tell("go")
        expected = fill(store, number)
        compactor.line()
        assert dict(store.items()) == expected
    compactor.tell("enough")
    compactor.finish()
    store.compact()
    assert dict(store.items()) == expected
    only_the_log_is_left(store)


# -- snapshots of others ------------------------------------------------------------------------

SNAPSHOT = (
    OPEN
    + """
with store.snapshot() as view:
    first = {key: repr(value) for key, value in view.items()}
    say("holding")
    while hear() == "look":
        now = {key: repr(value) for key, value in view.items()}
        again = {key: repr(view.load(key)) for key in view.keys()}
        say(now == first == again, len(first), view.load("k000"), view.exists("later"))
say("ended")
while hear() == "look":
    store._engine.drop_removed()
    held = set(store._engine.files.fds)
    say(len(held - {segment.segment for segment in store.stats().segments}))
store.close()
"""
)


def test_a_snapshot_of_another_process_stays_right_through_many_compactions(path, child, store):
    before = fill(store, 0)
    reader = child(SNAPSHOT, path)
    assert reader.line() == "holding"
    for number in range(1, 5):
        expected = fill(store, number)
        store.save("later", number)
        assert store.compact().files_waiting > 0
        assert reader.ask("look") == f"True {len(before)} None False"
    assert reader.ask("enough") == "ended"
    assert store.compact().files_waiting == 0
    assert dict(store.items()) == {**expected, "later": 4}
    only_the_log_is_left(store)
    # It lets go of what it had open of them.
    assert reader.ask("look") == "0"
    reader.tell("enough")
    reader.finish()


def test_a_snapshot_of_a_process_that_died_keeps_nothing(path, child, store):
    fill(store, 0)
    reader = child(SNAPSHOT, path)
    assert reader.line() == "holding"
    expected = fill(store, 1)
    assert store.compact().files_waiting > 0
    reader.kill()
    assert compaction.reclaim(store._engine) == 0
    assert dict(store.items()) == expected
    only_the_log_is_left(store)
    assert {reader.pid for reader in store.stats().readers} <= {os.getpid()}


DIES_COMPACTING = (
    OPEN
    + """
from kvsage.engine import compaction
def stop(*_):
    say("there")
    hear()
setattr(compaction, arguments[0], stop)
store.compact()
"""
)


@pytest.mark.parametrize("step", ["_join", "_move_rows", "_retire", "_forget"])
def test_a_compactor_that_is_stopped_and_killed(path, child, store, step):
    """It holds the lock as long as it lives, and nobody else is kept from reading and writing."""
    expected = fill(store, 0)
    other = child(DIES_COMPACTING, path, step)
    assert other.line() == "there"
    store._engine.upkeep.look(UNPACED)
    store.save("beside", 1)
    assert dict(store.items()) == {"beside": 1, **expected}
    assert store.verify(deep=True).problems == ()
    other.kill()
    assert store.compact().files_waiting == 0
    assert dict(store.items()) == {"beside": 1, **expected}
    only_the_log_is_left(store)


# -- forked children ------------------------------------------------------------------------------

FORKS = """
import math
store = LMDBStore(path, durability="relaxed", upkeep_interval=3600, lock_timeout=1)
store.save("k", 1)

def in_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:
            say(repr(error))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

def compact():
    store.save("k", 2)
    threads = [thread.name for thread in threading.enumerate()]
    say(store.compact().files_waiting, "kvsage-upkeep" in threads)

in_child(compact)
"""


def test_a_forked_child_looks_after_the_store_itself(path, child):
    one = child(FORKS, path)
    assert one.finish() == ["0 True"]


def test_a_forked_child_is_not_kept_out_by_a_lock_that_its_parent_held(path, child):
    """The parent holds it among processes, too, for as long as it compacts, and no longer."""
    program = FORKS.replace(
        "in_child(compact)",
        """
with store._engine.upkeep.lock.waiting():
    heard, told = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(heard, 1)
        try:
            compact()
        except BaseException as error:
            say(repr(error))
        finally:
            os._exit(0)
os.write(told, b"x")
os.waitpid(pid, 0)
""",
    )
    one = child(program, path)
    assert one.finish() == ["0 True"]


# -- all at once --------------------------------------------------------------------------------

BACKUPS = 5

BUSY = """
import queue, random
target = arguments.pop()
seed, times, backups = map(int, arguments)
store = LMDBStore(
    path, durability="relaxed", upkeep_interval=0.01, segment_bytes_max=65536, sync_interval=0.01
)
failed = []
done = threading.Event()
due = queue.SimpleQueue()

def write():
    chance = random.Random(seed)
    for number in range(times):
        with store.transaction() as tx:
            source, target = chance.sample(range(12), 2)
            amount = chance.randrange(20)
            for account, change in ((source, -amount), (target, amount)):
                balance, _ = tx.load(f"account:{account:02}")
                tx.save(f"account:{account:02}", [balance + change, os.urandom(600)])
        key = f"passing:{seed}:{chance.randrange(40)}"
        if chance.random() < 0.5:
            store.save(key, [number, "x" * chance.randrange(3000)], ttl=0.05)
        else:
            store.delete(key)
        if backups and number % (times // backups) == 0:
            due.put(number)
    if seed == 0:
        store.checkpoint()
    store.sweep()

def read():
    while not done.is_set():
        with store.snapshot() as view:
            for _ in range(2):
                balances = [value[0] for _, value in view.items("account:")]
                assert (len(balances), sum(balances)) == (12, 1200), balances

def back_up():
    for _ in iter(due.get, None):
        store.backup(target)

def kept(work):
    try:
        work()
    except BaseException as error:
        failed.append(repr(error))

say("ready"); hear()
works = (write, read, back_up)
writer, *others = threads = [threading.Thread(target=kept, args=(work,)) for work in works]
for thread in threads:
    thread.start()
writer.join(); done.set(); due.put(None)
for other in others:
    other.join()
error = store._engine.upkeep.last_error
store.close()
say(failed, error)
"""


def test_readers_see_one_sum_while_everything_goes_on(path, child, tmp_path):
    with LMDBStore(path, **QUIET) as store:
        store.save_many({f"account:{n:02}": [TOTAL // ACCOUNTS, b""] for n in range(ACCOUNTS)})
    times = 400
    target = tmp_path / "backups"
    processes = [
        child(BUSY, path, seed, times, BACKUPS if seed == 1 else 0, target) for seed in range(3)
    ]
    for one in processes:
        assert one.line() == "ready"
    for one in processes:
        one.tell("go")
    for one in processes:
        assert one.finish() == ["[] None"]
    written = 3 * times * 2 * 600
    with LMDBStore(path, **QUIET) as store:
        assert sum(value[0] for _, value in store.items("account:")) == TOTAL
        stats = store.stats()
        assert stats.log_bytes < written / 2  # it was compacted all the time
        assert store.verify(deep=True).problems == ()
        store.clear("passing:")
        assert store.compact().files_waiting == 0
        assert sum(value[0] for _, value in store.items()) == TOTAL
        only_the_log_is_left(store)
    made = LMDBStore.backups(target)
    assert len(made) == BACKUPS
    assert [backup.seq for backup in made] == sorted({backup.seq for backup in made})
    assert LMDBStore.verify_backups(target).problems == ()
    for backup in made:
        LMDBStore.restore(target, tmp_path / backup.name, name=backup.name)
        with LMDBStore(tmp_path / backup.name, **QUIET) as store:
            assert sum(value[0] for _, value in store.items("account:")) == TOTAL
            assert store.verify(deep=True).problems == ()
