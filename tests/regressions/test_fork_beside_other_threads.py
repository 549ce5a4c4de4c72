"""A child forked while another thread opens, backs up, or loads a module holds nothing up."""

import os
import subprocess
import sys

import pytest

PRELUDE = """
import importlib.machinery, os, select, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from kvsage import LMDBStore
PATIENCE_S = 30
inside, go = threading.Event(), threading.Event()
path = Path(sys.argv[1])
threads = ThreadPoolExecutor()

def hold():
    inside.set()
    go.wait(PATIENCE_S)

def lives():
    # A child that never uses the store, from here on to the end of the parent.
    heard, said = os.pipe()
    over, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(end)
        os.write(said, b"x")
        os.read(over, 1)
        os._exit(0)
    os.close(over)
    assert os.read(heard, 1) == b"x"
"""

OPENING = """
from kvsage.engine import engine
LMDBStore(path).close()
open_index = engine.open_index
def slow(*args, **how):
    hold()
    return open_index(*args, **how)
engine.open_index = slow
opening = threads.submit(LMDBStore, path)
assert inside.wait(PATIENCE_S)
lives()
go.set()
store = opening.result(PATIENCE_S)
store.save("a", 1)
store.close()
engine.open_index = open_index
again = LMDBStore(path, lock_timeout=0.2)
assert again.load("a") == 1
assert again.verify(deep=True).ok
again.close()
from kvsage.fs import Disk
from kvsage.fs.locks import LockFile, try_lock
free = [name for name in ("OPEN", "LOCK", "WRITE", "NEXT")
        if try_lock(LockFile(Disk(), path / name).fd)]
print(*free)
"""

BACKUP = """
store = LMDBStore(path)
store.save("a", 1)
backups = path.with_name("backups")
backing = threads.submit(store.backup, backups, progress=lambda *_: hold())
assert inside.wait(PATIENCE_S)
lives()
go.set()
backing.result(PATIENCE_S)
store.backup(backups)
assert store.verify(deep=True).ok
print("made")
"""

RESTORE = """
from kvsage.engine.restore import Site
store = LMDBStore(path)
store.save("a", 1)
backups = path.with_name("backups")
store.backup(backups)
store.close()
swap = Site.swap
def slow(self, **how):
    hold()
    return swap(self, **how)
Site.swap = slow
restoring = threads.submit(LMDBStore.restore, backups, path, overwrite=True)
assert inside.wait(PATIENCE_S)
lives()
go.set()
restoring.result(PATIENCE_S)
store = LMDBStore(path, lock_timeout=0.2)
assert store.load("a") == 1
assert store.verify(deep=True).ok
store.backup(backups)
store.close()
LMDBStore.restore(backups, path, overwrite=True)
print("restored")
"""

IMPORT = """
class Held:
    # Holds whoever looks for a module, or runs it.
    def __init__(self, name, when):
        self.name, self.when = name, when
    def find_spec(self, name, where, target=None):
        if name != self.name:
            return None
        if self.when == "found":
            hold()
        spec = importlib.machinery.PathFinder.find_spec(name, where, target)
        if self.when == "run":
            run = spec.loader.exec_module
            def slow(module):
                hold()
                run(module)
            spec.loader.exec_module = slow
        return spec

assert "kvsage.engine.check" not in sys.modules
sys.meta_path.insert(0, Held("kvsage.engine.check", sys.argv[2]))
store = LMDBStore(path)
store.save("a", 1)
os.register_at_fork(before=go.set)  # the last one registered comes first
verifying = threads.submit(store.verify)
assert inside.wait(PATIENCE_S)
heard, said = os.pipe()
pid = os.fork()
if not pid:
    os.write(said, b"ok" if store.verify(deep=True).ok else b"no")
    os._exit(0)
ready, _, _ = select.select([heard], [], [], 5)
print(os.read(heard, 9).decode() if ready else "hung")
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
assert verifying.result(PATIENCE_S).ok
"""


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_lock_of_a_store_that_was_being_opened_stays_with_the_child(tmp_path):
    assert run(OPENING, tmp_path / "s") == ["OPEN", "LOCK", "WRITE", "NEXT"]


def test_no_lock_of_a_backup_under_way_stays_with_the_child(tmp_path):
    assert run(BACKUP, tmp_path / "s") == ["made"]


def test_no_lock_of_a_restore_under_way_stays_with_the_child(tmp_path):
    assert run(RESTORE, tmp_path / "s") == ["restored"]


@pytest.mark.parametrize("when", ["found", "run"])
def test_a_module_that_was_being_loaded_is_there_for_the_child(tmp_path, when):
    assert run(IMPORT, tmp_path / "s", when) == ["ok"]
