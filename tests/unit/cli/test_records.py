import pytest


def test_set_and_get(run, keep, store):
    assert run("set", "--store", store, "greeting", "hello") == (0, b"", "")
    assert run("get", "--store", store, "greeting") == (0, b"hello", "")
    assert keep("get", "greeting") == (0, b"hello", "")
    assert run("get", "--store", store, "absent") == (1, b"", "kvsage: no key 'absent'\n")


def test_bytes_through_pipes(run, store):
    every_byte = bytes(range(256)) * 40
    assert run("set", "--store", store, "--raw", "bytes", "-", stdin=every_byte).code == 0
    assert run("get", "--store", store, "bytes").out == every_byte


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("5", b"5\n"),
        ('"5"', b"5"),
        ("null", b"null\n"),
        ('{"b": [1.5, true], "a": "grün"}', '{"b": [1.5, true], "a": "grün"}\n'.encode()),
        ('{"$date": "2026-01-01"}', b'{"$date": "2026-01-01"}\n'),
        ('{"$bytes": "/wA="}', b"\xff\x00"),
        ("", b""),
    ],
)
def test_what_set_takes_get_gives(keep, given, printed):
    assert keep("set", "key", given).code == 0
    assert keep("get", "key").out == printed


def test_set_from_stdin_and_from_a_file(keep, tmp_path):
    (tmp_path / "value.json").write_text('{"from": "file"}\n')
    assert keep("set", "file", "@value.json").code == 0
    assert keep("get", "file").out == b'{"from": "file"}\n'
    assert keep("set", "stdin", "-", stdin=b"[1, 2]\n").code == 0
    assert keep("get", "stdin").out == b"[1, 2]\n"
    assert keep("set", "text", "-", stdin=b"a line\n").code == 0
    assert keep("get", "text").out == b"a line\n"


def test_raw_bytes_come_back(keep):
    every_byte = bytes(range(256)) * 40
    assert keep("set", "--raw", "bytes", "-", stdin=every_byte).code == 0
    assert keep("get", "bytes").out == every_byte
    assert keep("get", "--raw", "bytes").out == every_byte
    assert keep("set", "--raw", "text", "[5").code == 0
    assert keep("get", "text").out == b"[5"


def test_json_forces_json(keep):
    keep("set", "text", "hello")
    assert keep("get", "--json", "text").out == b'"hello"\n'
    keep("set", "--raw", "bytes", "-", stdin=b"\xff\x00")
    assert keep("get", "--json", "bytes").out == b'{"$bytes": "/wA="}\n'


def test_value_that_begins_with_a_dash(keep):
    assert keep("set", "n", "-5").code == 2
    assert keep("set", "n", "--", "-5").code == 0
    assert keep("get", "n").out == b"-5\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["key", '{"a": 1'], "looks like JSON and is not"),
        (["key", "@absent"], "No such file"),
        (["key", "1", "--ttl", "0"], "ttl"),
        (["k" * 481, "1"], "at most 480"),
        (["", "1"], "at least one character"),
        (["key\udcff", "1"], "not valid Unicode"),
    ],
)
def test_set_refuses(keep, arguments, why):
    done = keep("set", *arguments)
    assert (done.code, done.out) == (2, b"")
    assert why in done.err
    assert done.err.count("\n") == 1


def test_a_missing_key_is_exit_1(keep):
    keep("set", "key", "1")
    for verb in ("get", "ttl", "del"):
        assert keep(verb, "absent") == (1, b"", "kvsage: no key 'absent'\n")
    assert keep("touch", "absent", "5m") == (1, b"", "kvsage: no key 'absent'\n")


def test_exists(keep):
    keep("set", "key", "1")
    assert keep("exists", "key") == (0, b"true\n", "")
    assert keep("exists", "absent") == (1, b"false\n", "")
    assert keep("exists", "--quiet", "absent") == (1, b"", "")
    assert keep("exists", "--json", "key").out == b'{"key": "key", "exists": true}\n'


def test_del_removes_what_is_there(keep):
    for key in ("a", "b", "c"):
        keep("set", key, "1")
    assert keep("del", "a", "absent", "b") == (1, b"", "kvsage: no key 'absent'\n")
    assert keep("scan").out == b"c\n"
    assert keep("del", "c") == (0, b"", "")


def test_ttl_and_touch(keep):
    keep("set", "key", "1", "--ttl", "1h")
    assert 3500 < float(keep("ttl", "key").text) <= 3600
    assert keep("touch", "key", "never") == (0, b"", "")
    assert keep("ttl", "key").out == b"permanent\n"
    assert keep("ttl", "--json", "key").out == b'{"key": "key", "ttl": null}\n'
    assert keep("touch", "key", "2d").code == 0
    assert 172_700 < float(keep("ttl", "key").text) <= 172_800


READING = [["get", "k"], ["exists", "k"], ["ttl", "k"], ["scan"], ["count"], ["info"], ["verify"]]
CHANGING = [["del", "k"], ["touch", "k", "1h"], ["repair", "--yes"]]


@pytest.mark.parametrize("arguments", READING + CHANGING, ids=lambda arguments: arguments[0])
def test_a_store_that_is_not_there_is_not_made(keep, store, arguments):
    verb, *rest = arguments
    done = keep(verb, *rest)
    assert (done.code, done.out) == (3, b"")
    assert f"no store at {store}" in done.err
    assert not store.exists()
    store.mkdir()
    assert keep(verb, *rest).code == 3
    assert list(store.iterdir()) == []


def test_something_else_is_not_a_store(call, tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_text("precious")
    for path in ("directory", "directory/file"):
        for arguments in (["get", "key"], ["set", "key", "1"]):
            done = call(arguments[0], "--store", path, *arguments[1:])
            assert (done.code, done.out) == (3, b"")
    assert (tmp_path / "directory" / "file").read_text() == "precious"
    assert len(list((tmp_path / "directory").iterdir())) == 1


def test_urls(call, tmp_path):
    url = f"lmdb://{tmp_path}/with%20space"
    assert call("set", "--store", url, "key", "hello").code == 0
    assert call("get", "--store", "with space", "key").out == b"hello"
    assert call("get", "--store", f"{url}?readonly=true", "key").out == b"hello"
    assert call("set", "--store", f"{url}?readonly=true", "key", "1").code == 2
    assert call("get", "--store", f"lmdb://{tmp_path}/absent", "key").code == 3


def test_terminal_gets_text_and_indented_json(keep, each_on_terminal):
    keep("set", "text", "hello")
    keep("set", "json", '{"a": [1]}')
    keep("set", "--raw", "bytes", "-", stdin=b"\xff\x00")
    keep("set", "--raw", "steering", "-", stdin=b"red: \x1b[31m")
    keep("set", "--raw", "file", "-", stdin="Grüße\nund mehr\n".encode())
    expected = {
        "text": b"hello\n",
        "--json text": b'"hello"\n',
        "json": b'{\n  "a": [\n    1\n  ]\n}\n',
        "--raw json": b'{"a": [1]}\n',
        "bytes": b'{\n  "$bytes": "/wA="\n}\n',
        "steering": b"red: \\x1b[31m\n",
        "--raw bytes": b"\xff\x00",
        "file": "Grüße\nund mehr\n".encode(),
    }
    shown = each_on_terminal(*(["get", *arguments.split()] for arguments in expected))
    assert dict(zip(expected, shown, strict=True)) == expected
