import json
import os
import shutil
from pathlib import Path

import pytest
from msgpack import packb

from kvsage import LMDBStore, cli
from kvsage.cli import health
from kvsage.cli.health import repair_lines, verify_lines
from kvsage.cli.render import byte_size
from kvsage.types import Problem, RepairReport, VerifyReport

PROBLEM = Problem("bad checksum", segment=3, offset=4096, length=20, keys=("a\nb",))


@pytest.fixture
def filled(store: Path) -> Path:
    with LMDBStore(store) as opened:
        opened.save("small", "value")
        for number in range(4):
            opened.save(f"text/{number}", "the same text " * 1000)
    return store


def flip(store: Path, what: bytes) -> None:
    """Damage one byte of a segment, in the middle of `what`."""
    [segment] = (store / "log").iterdir()
    data = bytearray(segment.read_bytes())
    data[data.index(what)] ^= 1
    segment.write_bytes(data)


# -- info ---------------------------------------------------------------------------------------


def facts_of(shown) -> dict[str, str]:
    """What `info` says, by name."""
    pairs = (line.rsplit("  ", 1) for line in shown.lines if line.startswith("  "))
    return {name.strip(): value for name, value in pairs}


def test_info(filled, keep):
    shown = keep("info")
    assert (shown.code, shown.err) == (0, "")
    facts = facts_of(shown)
    assert facts["keys"] == "5"
    assert facts["distinct contents"] == "1"
    assert facts["nodes of trees"] == "0"
    assert facts["references to either"] == "4"
    assert facts["content, as its keys see it"] == "56.0 kB"
    assert facts["distinct"] == "14.0 kB"
    assert facts["dedup ratio"] == "4.00x"
    assert float(facts["compression ratio"].removesuffix("x")) > 50
    assert float(facts["both together"].removesuffix("x")) > 200
    assert facts["readers"] == "none"
    assert "active" in shown.text


def test_info_json(filled, keep):
    figures = json.loads(keep("info", "--json").text)
    assert figures["store"] == str(filled)
    assert figures["keys"] == 5
    assert figures["dedup_ratio"] == 4.0
    assert figures["segments"][0]["state"] == "active"
    assert figures["segments"][0]["live_bytes"] == figures["live_bytes"]
    assert figures["checkpoint_seq"] is None
    assert figures["commits"] == 5
    assert figures["files_waiting"] == figures["dead_bytes"] == 0
    assert "process" not in figures  # the command itself has done nothing


def test_info_of_a_value_that_is_saved_again_and_again(store, keep):
    talk = [{"role": "user", "text": f"message {n}, " * 30} for n in range(1000)]
    with LMDBStore(store, upkeep_interval=float("inf")) as opened:
        for number in range(20):
            opened.save(f"turn/{number}", talk[: 980 + number])
        stats = opened.stats()
    facts = facts_of(keep("info"))
    figures = json.loads(keep("info", "--json").text)
    as_keys_see_it = sum(len(packb(talk[: 980 + number])) for number in range(20))
    # Headers and open ends of the lists stand in the entries of the keys themselves.
    assert 0.9 * as_keys_see_it < figures["logical_bytes"] < as_keys_see_it
    assert facts["content, as its keys see it"] == byte_size(figures["logical_bytes"])
    assert facts["distinct"] == byte_size(stats.content_bytes)
    assert 0 < figures["content_nodes"] == stats.content_nodes
    assert facts["nodes of trees"] == f"{stats.content_nodes:,}"
    assert facts["distinct contents"] == f"{stats.contents:,}"
    assert facts["on disk, nodes included"] == byte_size(stats.content_stored_bytes)
    assert figures["dedup_ratio"] > 10
    assert facts["dedup ratio"] == f"{figures['dedup_ratio']:.2f}x"
    together = figures["dedup_ratio"] * figures["compression_ratio"]
    assert figures["space_ratio"] == pytest.approx(together)
    assert facts["both together"] == f"{figures['space_ratio']:.2f}x"


def test_info_shows_garbage_expiry_and_checkpoint(store, keep):
    with LMDBStore(store, clock=lambda: 1e9, upkeep_interval=float("inf")) as opened:
        opened.save("expired", 1, ttl=5)
        opened.save("dead", "x" * 500)
        opened.delete("dead")
        opened.checkpoint()
        opened.save("later", 1)
    lines = {line.strip().rsplit("  ", 1)[0].strip(): line for line in keep("info").lines}
    assert lines["expired, not swept yet"].endswith(" 1")
    assert lines["deletions kept"].endswith(" 1")
    assert lines["dead"].endswith(" 536 B")
    assert lines["framing"].endswith(" 224 B")
    assert lines["checkpoint"].endswith(" kB, 1 commit ago")
    (store / "index.checkpoint").write_bytes(b"damaged")
    assert "damaged" in keep("info").text


def test_info_on_a_terminal(filled, on_terminal):
    shown = on_terminal("info").text
    assert "dedup ratio" in shown
    assert "\x1b[36m" in shown
    assert "\x1b[36m" not in on_terminal("info", NO_COLOR="1").text
    assert "\x1b" not in on_terminal("info", TERM="dumb").text


def test_info_shows_who_reads(filled, run):
    with LMDBStore(filled) as opened, opened.snapshot() as view:
        assert view.exists("small")
        opened.save("small", "another")
        shown = run("info", "--store", filled).text
    [reading] = [
        line for line in shown.splitlines() if f"reader in process {os.getpid()}  " in line
    ]
    assert reading.endswith(" 1 index transaction behind")


# -- verify -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--deep"]])
def test_verify_finds_nothing(filled, keep, arguments):
    shown = keep("verify", *arguments)
    assert (shown.code, shown.err) == (0, "")
    assert shown.text.startswith("ok: 1 segment, 5 commits, ")
    assert shown.text.endswith("cross-checked\n" if arguments else "read\n")
    report = json.loads(keep("verify", "--json", *arguments).text)
    assert (report["ok"], report["problems"], report["deep"]) == (True, [], bool(arguments))


def test_damage_is_exit_4(filled, keep):
    flip(filled, b"value")
    got = keep("get", "small")
    assert (got.code, got.out) == (4, b"")
    assert "segment 1, offset " in got.err
    assert got.err.count("\n") == 1
    assert keep("get", "text/0").code == 0  # the rest can be read
    shown = keep("verify")
    assert shown.code == 4
    assert shown.lines[0].startswith("segment 1, offset ")
    assert shown.lines[-1].startswith("1 problem: ")
    report = json.loads(keep("verify", "--json").text)
    assert not report["ok"]
    assert report["problems"][0]["segment"] == 1


def test_a_damaged_store_is_repaired(filled, keep):
    flip(filled, b"value")
    shutil.rmtree(filled / "index")
    refused = keep("get", "text/0")
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert keep("repair", "--dry-run").code == 4
    assert keep("get", "text/0").code == 4  # nothing was touched
    done = keep("repair", "--yes")
    assert (done.code, done.err) == (0, "")
    assert "index rebuilt from the log" in done.lines
    assert keep("verify", "--deep").code == 0
    assert keep("get", "text/0").code == 0


def test_verify_in_words():
    assert verify_lines(VerifyReport((PROBLEM, PROBLEM), 2, 1234, 5678, 9_000_000, deep=True)) == [
        "segment 3, offset 4096, 20 bytes: bad checksum [keys: a\\nb]",
        "segment 3, offset 4096, 20 bytes: bad checksum [keys: a\\nb]",
        "2 problems: 2 segments, 1,234 commits, 5,678 entries, 9.0 MB read, cross-checked",
    ]


# -- repair -------------------------------------------------------------------------------------


def report(*, dry_run: bool, damaged: bool = True) -> RepairReport:
    return RepairReport(
        problems=(PROBLEM,) if damaged else (),
        dry_run=dry_run,
        rebuilt=damaged,
        entries_kept=7,
        bytes_lost=1500 if damaged else 0,
        keys_lost=("a\nb",) if damaged else (),
        saved_to="lost+found/1" if damaged else None,
    )


class Repairs:
    """Stands for the engine's repair, and counts what it is asked."""

    def __init__(self, *, damaged: bool) -> None:
        self.damaged = damaged
        self.asked: list[bool] = []

    def repair(self, _path, *, dry_run=False):
        self.asked.append(dry_run)
        return report(dry_run=dry_run, damaged=self.damaged)


@pytest.fixture
def repairs(monkeypatch, request):
    stand_in = Repairs(damaged=getattr(request, "param", True))
    monkeypatch.setattr(health, "LMDBStore", stand_in)
    return stand_in


def test_dry_run_touches_nothing(filled, repairs, capsys):
    assert cli.main(["repair", "--store", str(filled), "--dry-run"]) == 4
    assert repairs.asked == [True]
    assert capsys.readouterr().out == (
        "segment 3, offset 4096, 20 bytes: bad checksum [keys: a\\nb]\n"
        "index would be rebuilt from the log\n"
        "7 entries would be kept, 1.5 kB of log would be lost\n"
        "lost: a\\nb\n"
        "damaged files would be kept in lost+found/1\n"
    )


def test_yes_repairs_at_once(filled, repairs, capsys):
    assert cli.main(["repair", "--store", str(filled), "--yes"]) == 0
    assert repairs.asked == [False]
    assert "7 entries kept, 1.5 kB of log lost\n" in capsys.readouterr().out


def test_json(filled, repairs, capsys):
    assert cli.main(["repair", "--store", str(filled), "--yes", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["keys_lost"] == ["a\nb"]
    assert shown["problems"][0]["offset"] == 4096


def test_away_from_a_terminal_it_needs_yes(filled, keep):
    done = keep("repair")
    assert (done.code, done.out) == (2, b"")
    assert "give --yes, or look with --dry-run first" in done.err


class Typing:
    """A terminal at which someone answers."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self):
        return True

    def readline(self, *_):
        return self.answer + "\n"


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_asks(monkeypatch, filled, repairs, capsys, answer):
    monkeypatch.setattr("sys.stdin", Typing(answer))
    assert cli.main(["repair", "--store", str(filled)]) == {"y": 0, "n": 4}[answer]
    assert repairs.asked == {"y": [True, False], "n": [True]}[answer]
    shown = capsys.readouterr()
    assert "would be rebuilt" in shown.err
    assert "Do it so? [y/N]" in shown.err
    assert ("nothing was changed" in shown.err) == (answer == "n")
    assert ("index rebuilt" in shown.out) == (answer == "y")


@pytest.mark.parametrize("repairs", [False], indirect=True)
def test_nothing_to_repair(monkeypatch, filled, repairs, capsys):
    assert cli.main(["repair", "--store", str(filled), "--dry-run"]) == 0
    assert capsys.readouterr().out == "no damage found\n"


def test_only_embedded_stores_can_be_repaired(run):
    done = run("repair", "--yes", "--store", "redis://user:secret@host/1")
    assert done.code == 2
    assert "redis://user:***@host/1" in done.err
    assert "secret" not in done.err


def test_repair_in_words():
    assert repair_lines(report(dry_run=False))[1] == "index rebuilt from the log"
    assert repair_lines(report(dry_run=True, damaged=False)) == ["no damage found"]
