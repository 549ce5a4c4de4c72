"""An AsyncStore bounds its transactions in each event loop, one after another and side by side."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

from kvsage import AsyncStore, LMDBStore

PATIENCE_S = 60


async def transactions(store, name):
    """More of them than there are threads, so that they wait for each other."""

    async def saves(number):
        async with store.transaction() as tx:
            await tx.save(f"{name}{number}", number)

    await asyncio.wait_for(asyncio.gather(*(saves(number) for number in range(3))), PATIENCE_S)


def test_transactions_in_one_loop_after_another(tmp_path):
    with LMDBStore(tmp_path / "s", upkeep_interval=math.inf) as embedded:
        store = AsyncStore(embedded, threads=1)
        for name in "abc":
            asyncio.run(transactions(store, name))
        assert embedded.count() == 9
        assert len(store._turns) == 1  # those of loops that have ended are forgotten
        assert embedded.verify(deep=True).ok


def test_transactions_in_two_loops_at_once(tmp_path):
    with LMDBStore(tmp_path / "s", upkeep_interval=math.inf) as embedded:
        store = AsyncStore(embedded, threads=1)
        with ThreadPoolExecutor(2) as threads:
            runs = [threads.submit(asyncio.run, transactions(store, name)) for name in "ab"]
            for run in runs:
                run.result(PATIENCE_S)
        assert embedded.count() == 6
        assert embedded.verify(deep=True).ok
