"""A transaction inside a generator that another thread finalises does not lock the store."""

import contextlib
import threading

from kvsage import LMDBStore, TransactionStateError


def test_a_transaction_finalised_on_another_thread_lets_the_writers_on(tmp_path):
    with LMDBStore(tmp_path / "s", lock_timeout=0.5) as store:

        def generates():
            with store.transaction() as tx:
                tx.save("a", 1)
                yield

        generator = generates()
        begun = threading.Thread(target=next, args=(generator,))
        begun.start()
        begun.join()
        with contextlib.suppress(TransactionStateError):
            generator.close()
        assert store.save("b", 2)
        assert store.load("a") is None
