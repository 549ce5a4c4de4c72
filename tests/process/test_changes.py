"""A feed across processes: who follows hears everything once, whoever writes and whoever dies."""

import json
import math
import signal

import pytest

from kvsage import LMDBStore

WRITERS = 3
ROUNDS = 120

WRITES = """
import json, random
number, rounds, options = map(json.loads, arguments)
chance = random.Random(number)
store = LMDBStore(path, **options)
say("ready"); hear()
for turn in range(rounds):
    verb = chance.randrange(4)
    if verb == 0:
        store.save_many({f"{number}/{key}": turn for key in range(6)})
    elif verb == 1:
        with store.transaction() as tx:
            tx.save(f"{number}/0", turn)
            tx.delete(f"{number}/{chance.randrange(1, 6)}")
            tx.save("shared", f"{number}:{turn}")
    elif verb == 2:
        store.save(f"{number}/{chance.randrange(6)}", f"{turn} " * chance.randrange(1, 3000))
    else:
        store.save("shared", f"{number}:{turn}")
    store.save(f"turn/{number}", turn)
store.close()
"""

FOLLOWS = """
from kvsage import ChangesLostError
since, consumer, most = arguments[0] or None, arguments[1] or None, float(arguments[2])
store = LMDBStore(path)
def length(change):
    try:
        return len(str(change.value))
    except ChangesLostError:
        return "gone"
with store.changes(since, follow=True, consumer=consumer) as feed:
    for count, change in enumerate(feed, start=1):
        say(change.position, change.kind, change.key, length(change))
        if change.key == "end":
            break
        if count >= most:
            hear()
store.close()
"""

QUIET = {"durability": "relaxed", "upkeep_interval": math.inf}
BUSY = {"durability": "relaxed", "upkeep_interval": 0.01, "segment_bytes_max": 1 << 16}


def start(child, path, options):
    writers = [
        child(WRITES, path, number, ROUNDS, json.dumps(options)) for number in range(WRITERS)
    ]
    for one in writers:
        assert one.line() == "ready"
    for one in writers:
        one.tell("go")
    return writers


AHEAD = 50  # what a follower may say after the line that it is killed for


def follow(child, path, lives, consumer=""):
    """What followers said that were killed after so many changes, each begun behind the last.

    However slow the kill, a follower leaves something for those that come after it.
    """
    said = []
    for life in lives:
        since = "" if consumer or not said else said[-1].split()[0]
        one = child(FOLLOWS, path, since, consumer, life + AHEAD)
        heard = [one.line() for _ in range(life)]
        said += heard + one.kill()
    return said


def rest(child, path, said, consumer=""):
    since = "" if consumer or not said else said[-1].split()[0]
    return child(FOLLOWS, path, since, consumer, math.inf).finish()


def shape(words):
    return [tuple(line.split()[:3]) for line in words]


@pytest.mark.parametrize("lives", [[1, 40, 100], [150], [5] * 5])
def test_a_follower_that_is_killed_misses_nothing_and_hears_nothing_twice(path, child, lives):
    LMDBStore(path).close()
    with LMDBStore(path, upkeep_interval=math.inf) as store:
        writers = start(child, path, QUIET)
        said = follow(child, path, lives)
        for one in writers:
            one.finish()
        store.save("end", 1)
        said += rest(child, path, said)
        everything = list(store.changes())
        assert shape(said) == [
            (str(change.position), change.kind, change.key) for change in everything
        ]
        for number in range(WRITERS):
            turns = [change for change in everything if change.key == f"turn/{number}"]
            assert [change.value for change in turns] == list(range(ROUNDS))


def test_a_named_follower_that_is_killed_misses_nothing(path, child):
    """What it had in hand when it died comes again, and nothing else changes its order."""
    with LMDBStore(path, upkeep_interval=math.inf) as store:
        writers = start(child, path, QUIET)
        said = follow(child, path, [30, 60, 90], consumer="me")
        for one in writers:
            one.finish()
        store.save("end", 1)
        said += rest(child, path, said, consumer="me")
        everything = [str(change.position) for change in store.changes()]
        heard = [line.split()[0] for line in said]
        assert list(dict.fromkeys(heard)) == everything
        with store.changes(consumer="me") as feed:
            assert list(feed) == []


def test_compaction_in_another_process_hides_no_change_from_a_consumer(path, child):
    with LMDBStore(path, **BUSY) as store:
        store.changes(consumer="me").close()
        writers = start(child, path, BUSY)
        said = follow(child, path, [10], consumer="me")  # there are more keys, however compacted
        for one in writers:
            one.finish()
        store.compact()
        store.save("end", 1)
        said += rest(child, path, said, consumer="me")
        last = {}
        for place, kind, key, *_ in map(str.split, said):
            seq, n = place.partition("@")[0].split(".")
            assert (int(seq), int(n)) >= last.get(key, ((0, 0), ""))[0], key
            last[key] = (int(seq), int(n)), kind
        assert {key for key, (_, kind) in last.items() if kind == "put"} == set(store.keys())
        for key in list(store.keys()):
            assert store.entry(key).version.startswith(f"{last[key][0][0]}@")


FORKS = """
store = LMDBStore(path, durability="relaxed")
store.save_many({"a": 1, "b": 2})
feed = store.changes(follow=True, consumer="me")
assert [next(feed).key, next(feed).key] == ["a", "b"]
child = os.fork()
if not child:
    say("child", next(feed).key)
    feed.close()
    os._exit(0)
store.save("c", 3)
os.waitpid(child, 0)
say("parent", next(feed).key)
feed.close()
store.close()
"""


def test_a_feed_goes_on_on_both_sides_of_a_fork(path, child):
    assert child(FORKS, path).finish() == ["child c", "parent c"]


INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
store = LMDBStore(path)
store.save("a", 1)
feed = store.changes(follow=True)
try:
    say(next(feed).key)
    next(feed)
except KeyboardInterrupt:
    say("interrupted")
store.save("b", 1)
say(next(feed).key)
feed.close()
store.close()
"""


def test_an_interrupt_ends_the_wait_at_once(path, child):
    one = child(INTERRUPTED, path)
    assert one.line() == "a"
    one.process.send_signal(signal.SIGINT)
    assert one.finish() == ["interrupted", "b"]
