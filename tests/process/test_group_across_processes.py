"""Group commit with a fork in between, and with another process that writes at the same time."""

import os
import threading

from kvsage import LMDBStore

THREADS_AND_FORK = """
over = threading.Event()
running = threading.Barrier(5)

def saves(who):
    running.wait()
    turn = 0
    while not over.is_set() or turn < 20:
        assert store.save(f"{who}", turn)
        turn += 1

def crowd(name):
    threads = [threading.Thread(target=saves, args=(f"{name}:{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    running.wait()
    return threads

store = LMDBStore(path)
queued = store.later("save", "first", 1)  # the committer's thread runs when the fork comes
assert queued.result(60)
threads = crowd("parent")
for turn in range(5):
    pid = os.fork()
    if pid == 0:
        running = threading.Barrier(5)
        over = threading.Event()
        over.set()
        mine = crowd(f"child:{turn}")
        later = [store.later("save", f"later:{turn}:{n}", n) for n in range(10)]
        assert all(future.result(60) for future in later)
        for thread in mine:
            thread.join(60)
            assert not thread.is_alive()
        store.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
over.set()
for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
assert store.later("save", "last", 1).result(60)
store.close()
say("done")
"""

CROWD = """
store = LMDBStore(path)
def saves(who):
    for turn in range(25):
        assert store.save(f"{me}:{who}:{turn}", turn)
        assert store.add("taken", me) is False
        store.increment("count")
me = arguments[0]
say("ready")
hear()
threads = [threading.Thread(target=saves, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
store.close()
say("done")
"""


def test_a_fork_while_others_wait_in_the_queue(path, child):
    assert child(THREADS_AND_FORK, path).finish() == ["done"]
    with LMDBStore(path) as store:
        assert {store.load(f"child:{turn}:{n}") for turn in range(5) for n in range(4)} == {19}
        assert store.count("later:") == 50
        assert all(store.load(f"parent:{n}") >= 19 for n in range(4))
        assert store.load("last") == 1


def test_the_child_of_a_queue_has_an_empty_one(path):
    with LMDBStore(path) as store:
        store.save("k", 0)
        gate = store._engine.gate
        gate.enter()
        waiter = threading.Thread(target=lambda: store.save("k", 1), daemon=True)
        waiter.start()
        while not gate.waiting:
            os.sched_yield()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # The parent is inside the gate; what counts is that nobody is queued here.
                store.load("k")
                status = len(store._engine.gate.waiting)
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        gate.leave()
        waiter.join(60)
        assert store.load("k") == 1


def test_crowds_of_several_processes(path, child):
    with LMDBStore(path) as store:
        store.save_many({"taken": 1, "count": 0})
    crowds = [child(CROWD, path, name) for name in ("a", "b", "c")]
    for crowd in crowds:
        assert crowd.line() == "ready"
    for crowd in crowds:
        crowd.tell("go")
    for crowd in crowds:
        assert crowd.finish() == ["done"]
    with LMDBStore(path) as store:
        assert store.load("count") == 300
        assert [store.count(f"{name}:") for name in ("a", "b", "c")] == [100] * 3
