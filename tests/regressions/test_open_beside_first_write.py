"""An opener is not put off by another process's first write to a store that was closed clean."""

import os

from kvsage import LMDBStore
from kvsage.fs import Disk


def test_the_first_write_may_come_while_another_process_opens(tmp_path):
    path = tmp_path / "s"
    with LMDBStore(path) as store:
        store.save("a", 1)
    ready, go, done = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            store = LMDBStore(path)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            store.save("b", 2)
            os.write(done[1], b"x")
            os.read(go[0], 1)
            store.close()
            os._exit(0)
        finally:
            os._exit(1)
    os.read(ready[0], 1)

    class Slow(Disk):
        def read_file(self, path, limit):
            data = super().read_file(path, limit)
            if path.name == "INDEX":
                os.write(go[1], b"x")
                os.read(done[0], 1)
                Slow.read_file = Disk.read_file
            return data

    try:
        with LMDBStore(path, disk=Slow(), lock_timeout=0.5) as store:
            assert store.load("b") == 2
    finally:
        os.write(go[1], b"xx")
        os.waitpid(pid, 0)
