"""A save follows an index that another process has grown, with no read in between."""

import subprocess
import sys

from kvsage import LMDBStore

GROW = """
import sys
from kvsage import LMDBStore
with LMDBStore(sys.argv[1], index_map_bytes=1 << 20) as store:
    store.save_many({f"key-{n:060d}": n for n in range(20_000)})
"""


def test_the_next_save_follows(tmp_path):
    with LMDBStore(tmp_path / "s", index_map_bytes=1 << 20, sync_interval=3600) as store:
        store.save("a", 1)
        subprocess.run([sys.executable, "-c", GROW, tmp_path / "s"], check=True, timeout=120)
        store.save("a", 2)
        assert store.load("a") == 2
