"""`kvsage backup`: run, list, verify, prune, restore, and how each one ends."""

import json

import pytest

from kvsage import LMDBStore

CORRUPT, UNAVAILABLE, USAGE = 4, 3, 2


@pytest.fixture
def filled(keep):
    keep("set", "greeting", "hello")
    keep("set", "number", "5")


@pytest.fixture
def backups(filled, tmp_path, store):
    """Two backups of one store."""
    with LMDBStore(store) as opened:
        opened.backup(tmp_path / "backups")
        opened.save("third", 3)
        opened.backup(tmp_path / "backups")
    return tmp_path / "backups"


@pytest.mark.usefixtures("filled")
def test_run_and_restore(call, store, tmp_path):
    made = call("--store", store, "backup", "run", "kept")
    assert made.code == 0
    assert "1 of them new" in made.text
    done = call("backup", "restore", "kept", "again")
    assert (done.code, done.err) == (0, "")
    assert "2 keys" in done.text
    assert call("get", "greeting", "--store", "again").text == "hello"
    with LMDBStore(tmp_path / "again") as again:
        assert again.verify(deep=True).ok


def test_run_as_json(call, store, backups):
    made = call("backup", "run", "--store", store, backups, "--json", "--keep", "1", "--verify")
    said = json.loads(made.text)
    assert said["files_shared"] == 1
    assert [name[:8] for name in said["removed"]] == ["00000001", "00000002"]
    assert said["backup"]["number"] == 3
    assert said["backup"]["damage"] is None


def test_run_says_what_it_removed(call, store, backups):
    made = call("backup", "run", "-s", store, backups, "--keep-for", "0", "--copy")
    assert [line[:17] for line in made.lines[1:]] == ["removed: 00000001", "removed: 00000002"]


def test_list(call, backups):
    listed = call("backup", "list", backups)
    assert listed.code == 0
    assert [line.split()[0][:8] for line in listed.lines[3:]] == ["00000001", "00000002"]
    rows = [json.loads(line) for line in call("backup", "list", backups, "--json").lines]
    assert [row["seq"] for row in rows] == [2, 3]
    assert rows[0]["created_at"].endswith("+00:00")


def test_a_damaged_manifest_is_shown(call, backups):
    manifest = max((backups / "backups").iterdir())
    manifest.write_bytes(manifest.read_bytes().replace(b'"seq":3', b'"seq":4'))
    listed = call("backup", "list", backups)
    assert listed.code == CORRUPT
    assert "checksum" in listed.lines[-1]
    assert call("backup", "verify", backups).code == CORRUPT
    done = call("backup", "restore", backups, "again", "--name", manifest.stem)
    assert (done.code, done.out) == (UNAVAILABLE, b"")
    assert "checksum" in done.err


def test_verify(call, backups):
    checked = call("backup", "verify", backups)
    assert checked.code == 0
    assert checked.text.startswith("ok: 2 backups, ")
    name = min((backups / "backups").iterdir()).stem
    one = call("backup", "verify", backups, "--name", name, "--json")
    assert json.loads(one.text)["files"] == 1
    for path in (backups / "files").glob("*.seg"):
        path.unlink()
    checked = call("backup", "verify", backups)
    assert checked.code == CORRUPT
    assert [line.endswith("it is missing") for line in checked.lines] == [True, True, False]
    assert checked.lines[-1].startswith("2 problems: ")
    assert call("backup", "restore", backups, "again").code == UNAVAILABLE


def test_prune(call, backups):
    refused = call("backup", "prune", backups)
    assert refused.code == USAGE
    assert "--keep N" in refused.err
    assert call("backup", "prune", backups, "--keep", "0").code == USAGE
    assert call("backup", "prune", backups, "--keep-for", "1y").code == USAGE
    assert call("backup", "prune", backups, "--keep", "2", "--json").text == '{"removed": []}\n'
    pruned = call("backup", "prune", backups, "--keep", "1")
    assert pruned.code == 0
    assert pruned.text.startswith("removed: 00000001-")
    assert len(call("backup", "list", backups, "--json").lines) == 1


def test_restore_replaces_only_when_told(call, store, backups):
    call("set", "greeting", "changed", "--store", store)
    refused = call("backup", "restore", backups, store)
    assert refused.code == UNAVAILABLE
    assert "already" in refused.err
    done = call("backup", "restore", backups, store, "--overwrite", "--json")
    said = json.loads(done.text)
    assert said["replaced"] is True
    assert said["backup"]["number"] == 2
    assert call("get", "greeting", "--store", store).text == "hello"


def test_restore_an_earlier_one(call, backups):
    first = LMDBStore.backups(backups)[0]
    call("backup", "restore", backups, "named", "--name", first.name)
    call("backup", "restore", first.path, "direct")
    call("backup", "restore", backups, "at", "--at", first.created_at.isoformat())
    for place in ("named", "direct", "at"):
        assert call("count", "--store", place).text == "2\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["restore", "kept", "again"], UNAVAILABLE, "no backups"),
        (["list", "kept"], UNAVAILABLE, "no backups"),
        (["verify", "kept"], UNAVAILABLE, "no backups"),
        (["prune", "kept", "--keep", "1"], UNAVAILABLE, "no backups"),
        (["run", "kept"], USAGE, "which store"),
        (["run", "kept", "--store", "nowhere"], UNAVAILABLE, "no store"),
        (["run", "kept", "--store", "memory://"], USAGE, ""),
        (["restore", "kept", "again", "--at", "noon"], USAGE, "no instant"),
        (["made"], USAGE, "no such command"),
        ([], USAGE, "Usage"),
    ],
)
def test_what_cannot_be_done(call, tmp_path, arguments, code, said):
    done = call("backup", *arguments)
    assert (done.code, done.out) == (code, b"")
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("filled")
def test_a_place_that_is_refused(call, store):
    for place in (store / "backups", store.parent):
        refused = call("backup", "run", place, "--store", store)
        assert (refused.code, refused.out) == (UNAVAILABLE, b"")


def test_a_long_backup_says_where_it_is(call, store, backups, monkeypatch):
    monkeypatch.setattr("kvsage.cli.render.NOTE_SECONDS", -1.0)
    made = call("backup", "run", backups, "--store", store)
    assert made.err.startswith("backup: ")
