"""Readers on other threads do not notice that the index grows."""

import threading

from kvsage import KvsageError, LMDBStore


def test_no_load_fails_while_the_index_grows(tmp_path):
    with LMDBStore(tmp_path / "s", durability="relaxed", index_map_bytes=1 << 20) as store:
        store.save("a", 1)
        failed, over = [], threading.Event()

        def reads():
            while not over.is_set():
                try:
                    assert store.load("a") == 1
                    assert store.exists("a")
                except KvsageError as error:
                    failed.append(error)
                    return

        threads = [threading.Thread(target=reads) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(10):
            store.save_many({f"{turn}-{number:05}{'x' * 300}": number for number in range(3000)})
        over.set()
        for thread in threads:
            thread.join()
        assert not failed
