"""Backups while processes write, rotate and compact: each one is one state, whole."""

from kvsage import LMDBStore

ACCOUNTS = 8
TOTAL = ACCOUNTS * 1000

TRANSFERS = """
import random
store = LMDBStore(path, segment_bytes_max=65536, durability="relaxed", upkeep_interval=0.01)
chance = random.Random(int(arguments[0]))
say("ready")
number = 0
while True:
    number += 1
    with store.transaction() as tx:
        one, other = chance.sample(range(8), 2)
        some = chance.randrange(50)
        tx.save(f"account{one}", [tx.load(f"account{one}")[0] - some, "x" * 700])
        tx.save(f"account{other}", [tx.load(f"account{other}")[0] + some, "x" * 700])
    if number % 300 == 0:
        say(number)
"""

BACKING_UP = """
store = LMDBStore(path, upkeep_interval=float("inf"))
for number in range(int(arguments[1])):
    say(store.backup(arguments[0], keep=4).backup.seq)
"""

CLASHING = """
from kvsage import StoreLockedError
store = LMDBStore(path, upkeep_interval=float("inf"))
say("ready")
hear()
made = refused = 0
while made < 5:
    try:
        store.backup(arguments[0])
        made += 1
    except StoreLockedError:
        refused += 1
say(refused)
"""


def test_backups_beside_writers_of_two_processes(path, child, tmp_path):
    with LMDBStore(path) as store:
        store.save_many({f"account{n}": [1000, ""] for n in range(ACCOUNTS)})
    target = tmp_path / "backups"
    writers = [child(TRANSFERS, path, seed) for seed in (1, 2)]
    for writer in writers:
        assert writer.line() == "ready"
        writer.line()
    made = [int(seq) for seq in child(BACKING_UP, path, target, 8).finish()]
    assert made == sorted(made)
    assert made[0] < made[-1]
    for writer in writers:
        writer.line()
        writer.kill()
    kept = LMDBStore.backups(target)
    assert [backup.seq for backup in kept] == made[-4:]
    assert LMDBStore.verify_backups(target).problems == ()
    for backup in kept:
        place = tmp_path / backup.name
        LMDBStore.restore(target, place, name=backup.name)
        with LMDBStore(place) as store:
            assert store.verify(deep=True).problems == ()
            assert sum(value[0] for _, value in store.items("account")) == TOTAL


def test_processes_that_back_up_into_one_directory(path, child, tmp_path):
    with LMDBStore(path, segment_bytes_max=65536) as store:
        for number in range(8):
            store.save(f"k{number}", "x" * 30_000)
    target = tmp_path / "backups"
    children = [child(CLASHING, path, target) for _ in range(3)]
    for one in children:
        assert one.line() == "ready"
    for one in children:
        one.tell("go")
    for one in children:
        one.line()
        one.finish()
    numbers = [backup.number for backup in LMDBStore.backups(target)]
    assert numbers == list(range(1, 16))
    assert LMDBStore.verify_backups(target).problems == ()
