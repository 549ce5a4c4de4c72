"""A store across ``fork``: parent and child both go on, and neither harms the other."""

import multiprocessing
import os
import select
import signal
import threading
import traceback
from collections.abc import Callable

import pytest

from kvsage import LMDBStore, StoreClosedError, TransactionStateError

PATIENCE_S = 60


class Forked:
    """A forked child that runs ``work`` and ends without unwinding the test's own stack."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._result, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.write(out, repr(work()).encode())
                status = 0
            except BaseException:  # noqa: BLE001  # told to the parent, whatever it is
                os.write(out, traceback.format_exc().encode()[-4000:])
            finally:
                os._exit(status)
        os.close(out)

    def result(self) -> str:
        """What ``work`` gave, by its repr."""
        said = b""
        try:
            while True:
                ready, _, _ = select.select([self._result], [], [], PATIENCE_S)
                if not ready:
                    os.kill(self.pid, signal.SIGKILL)
                    pytest.fail("the forked child fell silent")
                data = os.read(self._result, 1 << 16)
                if not data:
                    break
                said += data
        finally:
            os.close(self._result)
            _, status = os.waitpid(self.pid, 0)
        assert status == 0, said.decode()
        return said.decode()


def test_the_child_reads_and_writes_through_what_it_inherited(path):
    with LMDBStore(path) as store:
        store.save("before", 1)

        def work():
            seen = store.load("before"), store.exists("nothing"), list(store.keys())
            store.save("by child", 2)
            store.save("long", "x" * 10_000)
            assert store.increment("before") == 2
            with store.transaction() as tx:
                tx.save("in transaction", tx.load("by child"))
            with store.snapshot() as view:
                return seen, view.load("in transaction")

        assert Forked(work).result() == "((1, False, ['before']), 2)"
        store.save("after", 3)
        assert store.load("before") == 2
        assert store.load("long") == "x" * 10_000
        assert list(store.keys()) == ["after", "before", "by child", "in transaction", "long"]
        assert store.verify(deep=True).ok


def in_transaction(store):
    with store.transaction() as tx:
        return tx.load("k")


def in_snapshot(store):
    with store.snapshot() as view:
        return view.load("k")


FIRST = {
    "load": lambda store: store.load("k"),
    "save": lambda store: int(store.save("k", 1)),
    "transaction": in_transaction,
    "snapshot": in_snapshot,
    "keys": lambda store: len(list(store.keys())),
    "content": lambda store: len(store.content.get(store.content.put(b"c"))),
    "stats": lambda store: store.stats().keys,
    "verify": lambda store: int(store.verify(deep=True).ok),
    "sync": lambda store: int(store.sync() is None),
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_any_verb_may_be_the_childs_first(path, first):
    with LMDBStore(path) as store:
        store.save("k", 1)
        assert Forked(lambda: first(store)).result() == "1"
        store.save("k", 2)
        assert store.load("k") == 2


def test_the_parents_snapshot_stays_right(path):
    with LMDBStore(path, durability="relaxed") as store:
        store.save_many({f"k{n}": "old" for n in range(50)})
        with store.snapshot() as view:

            def work():
                for _ in range(30):  # enough commits for LMDB to use freed pages again
                    store.save_many({f"k{n}": "new" for n in range(50)})
                    store.load("k1")

            Forked(work).result()
            for _ in range(30):
                store.save_many({f"k{n}": "newer" for n in range(50)})
            assert {value for _, value in view.items()} == {"old"}
            assert view.count() == 50
        assert {value for _, value in store.items()} == {"newer"}


def test_an_inherited_snapshot_is_closed_in_the_child(path):
    with LMDBStore(path) as store:
        store.save("k", 1)
        with store.snapshot() as view:

            def work():
                store.load("k")
                with pytest.raises(StoreClosedError):
                    view.load("k")
                view.close()

            Forked(work).result()
            store.save("k", 2)
            assert view.load("k") == 1


def test_an_inherited_transaction_is_refused_in_the_child(path):
    with LMDBStore(path) as store, store.transaction() as tx:
        tx.save("k", "parent")

        def work():
            for verb in (
                lambda: tx.load("k"),
                lambda: tx.save("k", "child"),
                tx.commit,
                tx.rollback,
            ):
                with pytest.raises(TransactionStateError):
                    verb()
            return store.load("k")  # nothing that was not committed

        assert Forked(work).result() == "None"
        assert tx.load("k") == "parent"
        tx.commit()
        assert store.load("k") == "parent"


WRITER = """
store = LMDBStore(path, lock_timeout=0.2)
from kvsage import StoreLockedError
say("ready")
while hear() != "enough":
    try:
        store.save("other", 1)
        say("written")
    except StoreLockedError:
        say("locked")
store.close()
"""


@pytest.mark.parametrize("uses", [False, True], ids=["idle child", "child that reads"])
def test_a_childs_end_keeps_the_parents_locks(path, child, uses):
    other = child(WRITER, path)
    with LMDBStore(path) as store:
        assert other.line() == "ready"
        with store.transaction() as tx:
            tx.save("k", 1)
            Forked(lambda: uses and store.load("k")).result()
            assert other.ask("write") == "locked"
        assert other.ask("write") == "written"
        assert store.load("other") == 1
        other.tell("enough")
        other.finish()


def test_the_parent_writes_on_while_children_come_and_go(path):
    with LMDBStore(path, durability="relaxed") as store:
        children = []
        for number in range(6):

            def work(number=number):
                for _ in range(20):
                    store.increment("n")
                    store.save(f"child:{number}", number)

            children.append(Forked(work))
            for _ in range(20):
                store.increment("n")
        for one in children:
            one.result()
        assert store.load("n") == 6 * 20 + 6 * 20
        assert store.count("child:") == 6


@pytest.mark.parametrize("threads", [1, 3])
def test_fork_while_other_threads_write(path, threads):
    """The child inherits locks that are held by threads which it does not have."""
    with LMDBStore(path, durability="relaxed", lock_timeout=30) as store:
        done = threading.Event()
        counts = [0] * threads

        def write(number):
            while not done.is_set():
                store.save(f"thread:{number}", "x" * 5000 + str(counts[number]))
                counts[number] += 1

        writers = [threading.Thread(target=write, args=(n,)) for n in range(threads)]
        for thread in writers:
            thread.start()
        try:
            for number in range(15):

                def work(number=number):
                    store.save(f"child:{number}", number)
                    return store.load(f"child:{number}")

                assert Forked(work).result() == str(number)
        finally:
            done.set()
            for thread in writers:
                thread.join(PATIENCE_S)
        assert store.count("child:") == 15
        for number, count in enumerate(counts):
            assert store.load(f"thread:{number}") == "x" * 5000 + str(count - 1)


def test_a_child_forks_again(path):
    with LMDBStore(path) as store:
        store.save("n", 1)

        def grandchild():
            return store.increment("n")

        def work():
            store.increment("n")
            return Forked(grandchild).result(), store.increment("n")

        assert Forked(work).result() == "('3', 4)"
        assert store.increment("n") == 5


def test_children_that_never_use_it_cost_nothing(path):
    with LMDBStore(path) as store:
        store.save("k", 1)
        for _ in range(20):
            Forked(lambda: None).result()
        Forked(store.close).result()  # nothing that the parent would notice
        assert store.load("k") == 1
        store.save("k", 2)
        assert store.load("k") == 2


def test_reader_slots_are_not_leaked(path):
    with LMDBStore(path) as store:
        store.save("k", 1)
        store.load("k")

        def work():
            for _ in range(3):
                store.load("k")

        for _ in range(10):
            Forked(work).result()
        # Each child that opens frees the slots of those that ended; the last one's may still stand.
        others = {reader.pid for reader in store.stats().readers} - {os.getpid()}
        assert len(others) <= 1


def counted(store, pipe):
    store.load("n")
    for _ in range(25):
        store.increment("n")
    pipe.send(store.load("n"))
    pipe.close()


def test_multiprocessing_with_fork(path):
    context = multiprocessing.get_context("fork")
    with LMDBStore(path) as store:
        store.save("n", 0)
        started = []
        for _ in range(3):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=counted, args=(store, theirs))
            process.start()
            theirs.close()
            started.append((process, ours))
        for process, ours in started:
            assert ours.poll(PATIENCE_S)
            assert ours.recv() >= 25
            process.join(PATIENCE_S)
            assert process.exitcode == 0
            ours.close()
        assert store.load("n") == 75
        assert store.increment("n") == 76


ENDINGS = """
how, uses = arguments
store = LMDBStore(path, durability="relaxed")
store.save("k", 1)
view = store.snapshot()
child = os.fork()
if child == 0:
    if uses == "uses":
        store.save("child", 1)
    if how == "_exit":
        os._exit(0)
    if how == "exit":
        sys.exit(0)
    if how == "close":
        store.close()
        os._exit(0)
    os.kill(os.getpid(), 9)
_, status = os.waitpid(child, 0)
assert status == (9 if how == "kill" else 0), status
assert view.load("k") == 1
for number in range(20):
    store.save("k", number)
assert view.load("k") == 1
view.close()
say(store.load("k"), store.load("child"))
assert store.verify(deep=True).ok
store.close()
"""


@pytest.mark.parametrize("uses", ["uses", "idles"])
@pytest.mark.parametrize("how", ["_exit", "exit", "close", "kill"])
def test_however_a_child_ends(path, child, how, uses):
    parent = child(ENDINGS, path, how, uses)
    assert parent.line() == f"19 {1 if uses == 'uses' else None}"
    assert parent.finish() == []
    with LMDBStore(path) as store:
        assert store.load("k") == 19
