"""A transaction's life: begun once, on one thread, not inside another, and always let go of."""

import threading

import pytest

from kvsage.errors import TransactionStateError

PATIENCE_S = 60


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


@pytest.fixture
def store(new_store):
    return new_store(lock_timeout=0)


def others_can_write(store):
    """Whether the gate is free, for this thread and for another one."""
    return store.save("free", 1) and run(lambda: store.save("free", 2)) is True


def test_a_transaction_inside_another_is_refused(store):
    with store.transaction() as outer:
        outer.save("a", 1)
        with pytest.raises(TransactionStateError), store.transaction() as inner:
            inner.save("a", 2)
        with pytest.raises(TransactionStateError):
            store.save("a", 2)
    assert store.load("a") == 1
    assert others_can_write(store)


def test_a_transaction_prepared_before_is_refused_inside_another(store):
    """Or its commit would come between what the outer one read and what it writes."""
    store.save("n", 1)
    outer, inner = store.transaction(), store.transaction()
    with outer:
        with pytest.raises(TransactionStateError), inner:
            inner.increment("n")
        outer.increment("n")
    assert store.load("n") == 2
    assert others_can_write(store)


def test_a_transaction_is_entered_once(store):
    transaction = store.transaction()
    with transaction:
        transaction.save("a", 1)
        with pytest.raises(TransactionStateError), transaction:
            pass
    assert store.load("a") == 1
    assert others_can_write(store)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_that_has_ended_is_not_begun_again(store, end):
    transaction = store.transaction()
    with transaction:
        transaction.save("a", 1)
        getattr(transaction, end)()
    with pytest.raises(TransactionStateError), transaction:
        pass
    assert others_can_write(store)


def test_before_its_block_a_transaction_has_not_begun(store):
    transaction = store.transaction()
    for use in (
        lambda: transaction.load("a"),
        lambda: transaction.save("a", 1),
        transaction.commit,
    ):
        with pytest.raises(TransactionStateError, match="not begun"):
            use()
    assert others_can_write(store)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_after_its_end_nothing_works(store, end):
    with store.transaction() as tx:
        tx.save("a", 1)
        getattr(tx, end)()
        for use in (lambda: tx.load("a"), lambda: tx.save("a", 2), tx.commit, tx.rollback):
            with pytest.raises(TransactionStateError, match="already"):
                use()
        assert others_can_write(store)
    assert store.load("a") == (1 if end == "commit" else None)


def test_another_thread_cannot_use_or_end_it(store):
    with store.transaction() as tx:
        tx.save("a", 1)
        for use in (lambda: tx.load("a"), lambda: tx.save("a", 2), tx.commit, tx.rollback):
            assert isinstance(run(use), TransactionStateError)
    assert store.load("a") == 1
    assert others_can_write(store)


def test_an_exception_rolls_back_and_lets_go(store):
    store.save("a", 1)
    before = store.stats().commits
    with pytest.raises(ZeroDivisionError), store.transaction() as tx:
        tx.save("a", 1 // tx.delete("x"))
    assert store.load("a") == 1
    assert store.stats().commits == before
    assert others_can_write(store)


def test_a_transaction_that_writes_nothing_commits_nothing(store):
    store.save("a", 1)
    before = store.stats().commits
    with store.transaction() as tx:
        assert tx.load("a") == 1
        assert tx.delete("x") is False
    assert store.stats().commits == before
