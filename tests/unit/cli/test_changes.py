import json
import signal

import pytest

from kvsage import LMDBStore

PATIENCE_S = 60


@pytest.fixture
def filled(keep, store):
    with LMDBStore(store) as opened:
        opened.save_many({"a/1": {"n": 1}, "b": "text\n"})
        opened.save("a/1", 2, ttl=1000)
        opened.delete("b")
    return keep


def fields(shown):
    assert (shown.code, shown.err) == (0, "")
    return [line.split("\t") for line in shown.lines]


def test_every_change_on_a_line(filled):
    rows = fields(filled("changes"))
    puts = [["put", "a/1"], ["put", "b"], ["put", "a/1"]]
    assert [row[2:] for row in rows] == [*puts, ["delete", "b"]]
    assert [row[0].split("@")[0] for row in rows] == ["1.0", "1.1", "2.0", "3.0"]
    assert all(row[1].endswith("+00:00") for row in rows)


def test_selection(filled):
    rows = fields(filled("changes"))
    assert fields(filled("changes", "--since", rows[1][0])) == rows[2:]
    assert fields(filled("changes", "--since", "1.0")) == rows[1:]
    assert fields(filled("changes", "--since", "1")) == rows[2:]
    assert fields(filled("changes", "--since", "0")) == rows
    assert fields(filled("changes", "--prefix", "a/")) == [rows[0], rows[2]]
    assert fields(filled("changes", "-n", "2")) == rows[:2]
    assert fields(filled("changes", "--limit", "0")) == []


def test_values(filled):
    rows = fields(filled("changes", "--values"))
    puts = [["a/1", '{"n": 1}'], ["b", '"text\\n"'], ["a/1", "2"]]
    assert [row[3:] for row in rows] == [*puts, ["b"]]


def test_json(filled):
    changes = [json.loads(line) for line in filled("changes", "--json", "--values").lines]
    assert [(change["kind"], change["key"], change.get("value")) for change in changes] == [
        ("put", "a/1", {"n": 1}),
        ("put", "b", "text\n"),
        ("put", "a/1", 2),
        ("delete", "b", None),
    ]
    assert ["expires_at" in change for change in changes] == [False, False, True, False]
    assert changes[3]["reason"] == "user"
    assert "value" not in changes[3]
    plain = [json.loads(line) for line in filled("changes", "--json").lines]
    assert plain == [
        {name: held for name, held in change.items() if name != "value"} for change in changes
    ]


def test_a_value_that_is_gone(keep, store):
    with LMDBStore(store) as opened:
        opened.save("a", "x" * 10_000)
        opened.delete("a")
    assert [row[3:] for row in fields(keep("changes", "--values"))] == [["a"], ["a"]]
    assert "value" not in json.loads(keep("changes", "--values", "--json").lines[0])


def test_an_expiry_says_so(keep, store):
    now = [1_700_000_000.0]
    with LMDBStore(store, clock=lambda: now[0]) as opened:
        opened.save("a", 1, ttl=5)
        now[0] += 10
        opened.sweep()
    assert [row[2:] for row in fields(keep("changes"))] == [["put", "a"], ["expired", "a"]]


def test_a_consumer_goes_on(filled, store):
    assert len(fields(filled("changes", "--consumer", "me", "-n", "3"))) == 3
    assert [row[3] for row in fields(filled("changes", "--consumer", "me"))] == ["b"]
    assert fields(filled("changes", "--consumer", "me")) == []
    with LMDBStore(store) as opened:
        assert list(opened.consumers()) == ["me"]
        assert opened.verify(deep=True).ok


def test_what_could_not_be_shown_is_not_passed(filled, spawn, store):
    process = spawn("changes", "--store", store, "--consumer", "me")
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 141
    assert len(fields(filled("changes", "--consumer", "me"))) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--since", "nonsense"], 2, "position"),
        (["--since", "1."], 2, "position"),
        (["--since", "9" * 5000], 2, "position"),
        (["--since", "9" * 20], 2, "since"),
        (["--since", "1." + "9" * 10], 2, "since"),
        (["--since", "99"], 5, "snapshot"),
        (["--since", "1.0@0123456789abcdef"], 5, "snapshot"),
        (["--since", "99@0123456789abcdef"], 5, "snapshot"),
        (["--consumer", ""], 2, "consumer"),
    ],
)
def test_what_cannot_be(filled, arguments, code, word):
    shown = filled("changes", *arguments)
    assert shown.code == code
    assert word in shown.err
    assert shown.out == b""


def test_following_shows_what_comes_at_once(spawn, store):
    with LMDBStore(store) as opened:
        opened.save("a", 1)
        process = spawn("changes", "--store", store, "--follow")
        assert process.stdout.readline().split(b"\t")[3] == b"a\n"
        for key in (b"b", b"c"):
            opened.save(key.decode(), 1)
            assert process.stdout.readline().split(b"\t")[3] == key + b"\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert opened.verify(deep=True).ok


def test_a_reader_that_leaves_ends_it(spawn, store):
    with LMDBStore(store) as opened:
        opened.save("a", 1)
        process = spawn("changes", "--store", store, "--follow", "--consumer", "me")
        assert process.stdout.readline()
        process.stdout.close()
        opened.save("b", 1)
        assert process.wait(PATIENCE_S) == 141
        # What could not be shown is shown the next time.
        assert [change.key for change in opened.changes(consumer="me")] == ["b"]
        assert opened.verify(deep=True).ok
