"""Locks between threads and processes, and the gate that lets in one writer at a time."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from kvsage.errors import StoreClosedError, StoreLockedError, TransactionStateError
from kvsage.errors import StoreUnavailableError as Unavailable
from kvsage.fs import POSIX
from kvsage.fs.locks import (
    TURNS_BEFORE_NEXT,
    LockFile,
    Waiter,
    WriterGate,
    identity,
    try_lock,
    unlock,
    wait_for_lock,
)

PATIENCE_S = 60  # bounds a wait that a fault would make endless; no assertion depends on it

HOLDER = """
import sys
from pathlib import Path
from kvsage.fs import POSIX
from kvsage.fs.locks import WriterGate

gate = WriterGate(POSIX, Path(sys.argv[1]), 60)
gate.enter()
print("in", flush=True)
sys.stdin.readline()
gate.leave()
print("out", flush=True)
sys.stdin.readline()
"""

BUSY = """
import sys, threading
from pathlib import Path
from kvsage.fs import POSIX
from kvsage.fs.locks import WriterGate

gate = WriterGate(POSIX, Path(sys.argv[1]), 60)
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), done.set()), daemon=True).start()
print("in", flush=True)
turns = 0
while not done.is_set():
    gate.enter()
    gate.leave()
    turns += 1
print(turns, flush=True)
"""


@pytest.fixture
def new_gate(tmp_path):
    """Makes gates; those of one directory shut each other out as those of processes do."""
    gates = []

    def make(timeout_s=PATIENCE_S):
        gates.append(WriterGate(POSIX, tmp_path, timeout_s))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()


@pytest.fixture
def new_process(tmp_path):
    """Starts programs on the gate of ``tmp_path``, and ends those that are left."""
    processes = []

    def start(program):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "in\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


def run(target):
    """Run on another thread to the end; what it returned or raised."""
    result = []

    def call():
        try:
            result.append(target())
        except BaseException as error:  # noqa: BLE001  # whatever it was, the test looks at it
            result.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(PATIENCE_S)
    return result[0]


def pass_through(gate, times):
    for _ in range(times):
        try:
            gate.enter()
        finally:
            gate.leave()


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


# -- flock --------------------------------------------------------------------------------------


def test_a_lock_belongs_to_one_opening(tmp_path):
    first, second = (LockFile(POSIX, tmp_path / "LOCK") for _ in range(2))
    assert try_lock(first.fd)
    assert try_lock(first.fd)
    assert not try_lock(second.fd)
    assert not try_lock(second.fd, shared=True)
    unlock(first.fd)
    unlock(first.fd)
    assert try_lock(second.fd)
    second.close()  # lets go
    assert try_lock(first.fd)
    first.close()
    first.close()
    assert first.fd == -1


def test_shared_locks_exclude_only_exclusive_ones(tmp_path):
    locks = [LockFile(POSIX, tmp_path / "LOCK") for _ in range(3)]
    assert try_lock(locks[0].fd, shared=True)
    assert try_lock(locks[1].fd, shared=True)
    assert not try_lock(locks[2].fd)
    unlock(locks[0].fd)
    assert not try_lock(locks[2].fd)
    unlock(locks[1].fd)
    assert try_lock(locks[2].fd)
    for lock in locks:
        lock.close()


def test_a_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    lock = LockFile(POSIX, tmp_path / "LOCK")
    monkeypatch.setattr("kvsage.fs.locks.flock", no_locks)
    with pytest.raises(Unavailable, match="No locks available"):
        try_lock(lock.fd)
    lock.close()


def test_waiting_ends_at_the_deadline_with_a_reason(tmp_path):
    first, second = (LockFile(POSIX, tmp_path / "LOCK") for _ in range(2))
    assert try_lock(first.fd)
    with pytest.raises(StoreLockedError, match="somebody else") as raised:
        wait_for_lock(second.fd, time.monotonic(), "somebody else")
    assert isinstance(raised.value, TimeoutError)
    with pytest.raises(StoreLockedError):
        wait_for_lock(second.fd, time.monotonic() + 0.001, "shared", shared=True)
    unlock(first.fd)
    wait_for_lock(second.fd, 0, "a lock that is free is taken whatever the deadline")
    first.close()
    second.close()


def test_identity_is_the_file_and_not_its_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").mkdir()
    assert identity(tmp_path / "a") == identity(tmp_path / "b")
    assert identity(tmp_path / "a") != identity(tmp_path / "c")


# -- the gate, among threads --------------------------------------------------------------------


def test_one_thread_at_a_time(new_gate):
    gate = new_gate()
    inside = 0
    most = []

    def work():
        nonlocal inside
        for _ in range(50):
            try:
                gate.enter()
                inside += 1
                most.append(inside)
                os.sched_yield()
                inside -= 1
            finally:
                gate.leave()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert most == [1] * 200


def test_another_thread_waits_until_the_first_has_left(new_gate):
    gate = new_gate()
    order = []
    begun = threading.Event()

    def second():
        begun.set()
        gate.enter()
        order.append("second")
        gate.leave()

    gate.enter()
    thread = threading.Thread(target=second)
    thread.start()
    assert begun.wait(PATIENCE_S)
    order.append("first")
    gate.leave()
    thread.join(PATIENCE_S)
    assert order == ["first", "second"]


def test_threads_get_in_as_they_came(new_gate):
    gate = new_gate()
    order = []

    def work(number):
        gate.enter()
        order.append(number)
        gate.leave()

    gate.enter()
    threads = []
    for number in range(6):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        until(lambda number=number: len(gate.waiting) > number)
    assert not run(gate.enter_now)  # nobody overtakes them
    gate.leave()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == list(range(6))


def test_who_waits_gets_in_when_a_turn_is_surrendered(new_gate):
    gate = new_gate()
    over = threading.Event()
    # It does not end yet: another thread might get its number, and with it the lock.
    owner = threading.Thread(target=lambda: (gate.enter(), over.wait(PATIENCE_S)))
    owner.start()
    until(lambda: gate.held)
    results = []
    thread = threading.Thread(target=lambda: results.append(gate.enter() or gate.leave()))
    thread.start()
    until(lambda: gate.waiting)
    gate.surrender()
    thread.join(PATIENCE_S)
    over.set()
    owner.join(PATIENCE_S)
    assert results == [None]
    assert not gate.waiting
    assert not gate.held


def test_a_thread_that_gives_up_leaves_the_queue_and_wakes_the_next(new_gate):
    gate = new_gate()
    gate.enter()
    first = Waiter(gate.deadline())
    gate.waiting.append(first)
    results = []
    thread = threading.Thread(target=lambda: results.append(gate.enter() or gate.leave()))
    thread.start()
    until(lambda: len(gate.waiting) > 1)
    gate.leave()  # wakes the first, which does nothing about it
    assert results == []
    gate.withdraw(first)
    gate.withdraw(first)
    thread.join(PATIENCE_S)
    assert results == [None]


def test_a_thread_that_waits_too_long_is_told(new_gate):
    gate = new_gate(timeout_s=0)
    gate.enter()
    error = run(gate.enter)
    assert isinstance(error, StoreLockedError)
    assert "another thread" in str(error)
    gate.leave()
    assert run(gate.enter) is None


def test_a_timeout_may_be_endless(new_gate):
    gate = new_gate(timeout_s=float("inf"))
    gate.enter()
    begun = threading.Event()

    def second():
        begun.set()
        gate.enter()
        gate.leave()
        return "in"

    thread = threading.Thread(target=lambda: results.append(second()))
    results = []
    thread.start()
    assert begun.wait(PATIENCE_S)
    gate.leave()
    thread.join(PATIENCE_S)
    assert results == ["in"]


def test_leaving_without_having_entered_does_nothing(new_gate):
    gate, other = new_gate(), new_gate(timeout_s=0)
    gate.leave()
    gate.enter()
    run(gate.leave)  # another thread's does not let the first one's go
    with pytest.raises(StoreLockedError):
        other.enter()
    other.leave()
    assert isinstance(run(lambda: new_gate(timeout_s=0).enter()), StoreLockedError)
    gate.leave()
    gate.leave()
    other.enter()
    other.leave()


def test_a_thread_that_is_in_is_refused_a_second_time(new_gate):
    gate = new_gate()
    gate.refuse_nested()
    gate.enter()
    with pytest.raises(TransactionStateError, match="this thread"):
        gate.refuse_nested()
    assert run(gate.refuse_nested) is None  # another one may come, and wait
    gate.leave()
    gate.refuse_nested()


def test_after_a_timeout_the_thread_is_not_in(new_gate):
    holder, gate = new_gate(), new_gate(timeout_s=0)
    holder.enter()
    for _ in range(2):
        try:
            with pytest.raises(StoreLockedError, match="another process"):
                gate.enter()
        finally:
            gate.leave()
        gate.refuse_nested()
    holder.leave()
    gate.enter()
    gate.leave()


# -- the gate, among processes ------------------------------------------------------------------


def test_one_process_at_a_time(new_gate, new_process):
    gate = new_gate(timeout_s=0)
    holder = new_process(HOLDER)
    with pytest.raises(StoreLockedError, match="another process"):
        gate.enter()
    gate.leave()
    tell(holder)
    assert holder.stdout.readline() == "out\n"
    gate.enter()
    gate.leave()


def test_a_process_that_dies_lets_the_next_one_in(new_gate, new_process):
    gate = new_gate()
    holder = new_process(HOLDER)
    holder.kill()
    holder.wait(PATIENCE_S)
    gate.enter()
    gate.leave()


def test_a_process_waits_for_another(tmp_path, new_gate, new_process):
    holder = new_process(HOLDER)
    gate = new_gate()
    turnstile = LockFile(POSIX, tmp_path / "NEXT")
    order = []

    def wait():
        gate.enter()
        order.append("in")
        gate.leave()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: not probe(turnstile))  # it stands in the turnstile, so it is waiting
    order.append("told")
    tell(holder)
    thread.join(PATIENCE_S)
    assert order == ["told", "in"]
    turnstile.close()


def probe(lock):
    """Whether the lock is free."""
    free = try_lock(lock.fd)
    if free:
        unlock(lock.fd)
    return free


def test_a_busy_writer_stops_for_who_waits_in_the_turnstile(tmp_path, new_gate):
    turnstile = LockFile(POSIX, tmp_path / "NEXT")
    gate = new_gate(timeout_s=0)
    assert try_lock(turnstile.fd)
    with pytest.raises(StoreLockedError):
        pass_through(gate, TURNS_BEFORE_NEXT)
    turnstile.close()
    pass_through(gate, 2 * TURNS_BEFORE_NEXT)


def test_who_is_in_leaves_the_turnstile_free(tmp_path, new_gate):
    turnstile = LockFile(POSIX, tmp_path / "NEXT")
    gate, other = new_gate(), new_gate(timeout_s=0)
    for _ in range(TURNS_BEFORE_NEXT):
        gate.enter()
        assert probe(turnstile)
        gate.leave()
    gate.enter()
    with pytest.raises(StoreLockedError):
        other.enter()
    other.leave()
    assert probe(turnstile)  # also after a wait that was in vain
    gate.leave()
    turnstile.close()


def test_a_waiter_gets_in_beside_a_busy_writer(new_gate, new_process):
    busy = [new_process(BUSY) for _ in range(2)]
    gate = new_gate()
    for _ in range(20):
        gate.enter()
        gate.leave()
    for process in busy:
        tell(process)
        assert int(process.stdout.readline()) > 0


# -- the gate that is closed --------------------------------------------------------------------


def test_a_closed_gate_says_so(new_gate):
    gate = new_gate()
    gate.close()
    gate.close()
    with pytest.raises(StoreClosedError):
        gate.enter()
    gate.leave()
