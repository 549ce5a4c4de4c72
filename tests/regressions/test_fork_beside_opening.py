"""A fork while another thread opens a log file does not hang the child."""

import os
import subprocess
import sys

SCRIPT = """
import os, sys, threading, signal
from kvsage import LMDBStore
store = LMDBStore(sys.argv[1])
store.save("a", 1)
held, over = threading.Event(), threading.Event()
def opens():
    with store._engine.files._lock:  # as in files.fd, while the system opens the file
        held.set()
        over.wait(60)
thread = threading.Thread(target=opens)
thread.start()
held.wait()
pid = os.fork()
if not pid:
    os._exit(0 if store.load("a") == 1 else 1)
import time
deadline = time.monotonic() + 10
found = 0
while not found and time.monotonic() < deadline:
    found, status = os.waitpid(pid, os.WNOHANG)
    over.wait(0.01)
if not found:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
over.set()
thread.join()
print("ended" if found and not status else "hung")
"""


def test_the_child_does_not_wait_for_a_thread_that_stayed_behind(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
        check=False,
    )
    assert run.stdout.strip() == "ended", run.stderr
