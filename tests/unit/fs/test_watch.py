"""Waiting for writes to a file, by each of the ways, across threads, processes and forks."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvsage.fs import watch as module
from kvsage.fs.watch import FileWatch

PATIENCE_S = 60
LINUX = sys.platform == "linux"
WAYS = ["_Inotify"] * LINUX + ["_Kqueue"] * hasattr(module.select, "kqueue") + ["_Pauses"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    return path


@pytest.fixture(params=WAYS)
def watch(request, path, monkeypatch):
    monkeypatch.setattr(module, "_notices", getattr(module, request.param))
    watch = FileWatch(path)
    yield watch
    watch.close()


@pytest.fixture
def aside():
    """Run something on another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def write(path, data=b"x"):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, 0)
        # Two writes within one tick of the file system's clock would look like one.
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    finally:
        os.close(fd)


def until_waiting(watch):
    while not watch._waiting:
        os.sched_yield()


def descriptors():
    return {file.name for file in Path("/dev/fd").iterdir()}


def test_a_write_between_two_waits_is_not_missed(watch, path):
    assert not watch.wait(0)
    write(path)
    assert watch.wait(PATIENCE_S)
    assert not watch.wait(0)


def test_a_write_ends_the_wait(watch, path, aside):
    waited = aside(watch.wait, PATIENCE_S)
    until_waiting(watch)
    write(path)
    assert waited.result(PATIENCE_S)


def test_another_process_writes(watch, path, aside):
    waited = aside(watch.wait, PATIENCE_S)
    until_waiting(watch)
    program = "import sys; file = open(sys.argv[1], 'r+b'); file.write(b'longer than it was')"
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=PATIENCE_S)
    assert waited.result(PATIENCE_S)


def test_closing_ends_the_wait_of_another_thread(watch, aside):
    waited = aside(watch.wait, PATIENCE_S)
    until_waiting(watch)
    watch.close()
    assert waited.result(PATIENCE_S) is False
    assert watch.wait(PATIENCE_S) is False


def test_closing_twice_is_fine_and_gives_every_descriptor_back(path, aside):
    before = descriptors()
    watch = FileWatch(path)
    waited = aside(watch.wait, PATIENCE_S)
    until_waiting(watch)
    watch.close()
    watch.close()
    assert waited.result(PATIENCE_S) is False
    watch.close()
    idle = FileWatch(path)
    idle.close()
    assert descriptors() == before


def test_closed_by_many_threads_at_once(path, aside):
    before = descriptors()
    for _ in range(50):
        watch = FileWatch(path)
        waited = aside(watch.wait, PATIENCE_S)
        for one in [aside(watch.close) for _ in range(3)]:
            one.result(PATIENCE_S)
        assert waited.result(PATIENCE_S) is False
    assert descriptors() == before


@pytest.mark.skipif(not LINUX, reason="of inotify")
@pytest.mark.parametrize("step", ["inotify_init1", "pipe", "gone"])
def test_without_descriptors_it_looks_again_and_again(path, aside, monkeypatch, step):
    before = descriptors()
    if step == "inotify_init1":
        monkeypatch.setattr(module, "IN_FLAGS", -1)  # fails as it does when there are no more
    elif step == "pipe":

        def refuse():
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(os, "pipe", refuse)
    else:
        monkeypatch.setattr(module, "IN_MODIFY", 0)  # inotify_add_watch refuses
    watch = FileWatch(path)
    assert type(watch._notices).__name__ == "_Pauses"
    assert descriptors() == before
    waited = aside(watch.wait, PATIENCE_S)
    until_waiting(watch)
    write(path)
    assert waited.result(PATIENCE_S)
    watch.close()


def test_pauses_end_though_the_time_of_the_file_stands_still(path, monkeypatch):
    # A write within the same tick leaves no trace in the file's time.
    monkeypatch.setattr(module, "PAUSE_MOST_S", 0.002)
    assert module._Pauses(path).wait(PATIENCE_S)


def test_pauses_bear_a_file_that_is_gone(path):
    pauses = module._Pauses(path)
    path.unlink()
    assert pauses.wait(PATIENCE_S)
    assert not pauses.wait(0)


FORKED = """
import os, sys, threading
from pathlib import Path
from kvsage.fs.watch import FileWatch

def write():
    with open(sys.argv[1], "r+b") as file:
        file.write(b"x")

watch = FileWatch(Path(sys.argv[1]))
closed = FileWatch(Path(sys.argv[1]))
closed.close()
read, written = os.pipe()
child = os.fork()
if not child:
    assert not watch.wait(0)
    assert not closed.wait(60)
    os.write(written, b"1")
    assert watch.wait(60)  # of its own: the parent has not been asked
    watch.close()
    watch.close()
    os._exit(0)
assert os.read(read, 1) == b"1"
write()
_, status = os.waitpid(child, 0)
assert status == 0, status
assert watch.wait(60)  # what the child took out was its own
child = os.fork()
if not child:
    watch.close()
    os._exit(0)
os.waitpid(child, 0)
write()
assert watch.wait(60)
watch.close()
"""


def test_a_forked_child_has_a_watch_of_its_own(path):
    subprocess.run([sys.executable, "-c", FORKED, path], check=True, timeout=PATIENCE_S)


INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
from kvsage.fs.watch import FileWatch

watch = FileWatch(Path(sys.argv[1]))
def interrupt():
    while not watch._waiting:
        os.sched_yield()
    os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
try:
    watch.wait(60)
except KeyboardInterrupt:
    watch.close()
    print("interrupted", watch._notices)
"""


def test_an_interrupt_ends_the_wait(path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, path],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout == "interrupted None\n"
