import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.cli.tree import File, LeftOut, Selection, key_of, path_of, read, walk

ANY = Selection()

# File names are bytes without NUL; the text is how Python shows them.
paths = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.lists(st.sampled_from([b"%", b"2", b"5", b"F", b"f", b"\xff", b"\xe9", b"/"])).map(b"".join),
).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))


@given(paths)
def test_every_path_has_a_key_that_leads_back(path):
    key = key_of(path)
    key.encode()  # it is valid Unicode text
    assert path_of(key) == path


@given(paths, paths)
def test_no_two_paths_share_a_key(one, other):
    assert (key_of(one) == key_of(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"plain/name.txt", "plain/name.txt"),
        ("grün".encode(), "grün"),
        (b"100%.txt", "100%.txt"),
        (b"a%20b.html", "a%20b.html"),
        (b"caf\xe9", "caf%E9"),
        (b"caf%E9", "caf%25E9"),
        (b"100%25", "100%2525"),
        (b"%\xff", "%%FF"),
        (b"\xed\xa0\x80", "%ED%A0%80"),  # half a surrogate pair is not UTF-8
    ],
)
def test_documented_keys(name, key):
    assert key_of(os.fsdecode(name)) == key


def make(root: Path, *names: str) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def files(root: Path, selection: Selection = ANY) -> list[str]:
    return [found.path for found in walk(str(root), selection) if isinstance(found, File)]


def left_out(root: Path, selection: Selection = ANY) -> dict[str, bool]:
    return {
        os.path.relpath(found.source, root): found.failed
        for found in walk(str(root), selection)
        if isinstance(found, LeftOut)
    }


def test_walks_in_the_order_of_names(tmp_path):
    make(tmp_path, "b.txt", "a/z.txt", "a/b/c.txt", "c", "B", ".hidden", "a-b")
    assert files(tmp_path) == [".hidden", "B", "a/b/c.txt", "a/z.txt", "a-b", "b.txt", "c"]


@pytest.mark.parametrize("ending", ["", "/", "//", "/."])
def test_the_way_a_root_is_written_does_not_matter(tmp_path, ending):
    make(tmp_path, "a/b")
    found = [each for each in walk(f"{tmp_path}{ending}", ANY) if isinstance(each, File)]
    assert [each.path for each in found] == ["a/b"]
    assert found[0].size == 3


def test_a_file_is_a_tree_of_one(tmp_path):
    make(tmp_path, "a/b.txt")
    assert files(tmp_path / "a" / "b.txt") == ["b.txt"]


def test_include_and_exclude(tmp_path):
    make(tmp_path, "a.py", "a.txt", "src/b.py", "src/gen/c.py", "docs/d.txt")
    assert files(tmp_path, Selection(include=("*.py",))) == ["a.py", "src/b.py", "src/gen/c.py"]
    assert files(tmp_path, Selection(include=("src/*",))) == ["src/b.py", "src/gen/c.py"]
    assert files(tmp_path, Selection(exclude=("src",))) == ["a.py", "a.txt", "docs/d.txt"]
    only = Selection(include=("*.py", "*.txt"), exclude=("src/gen", "a.*"))
    assert files(tmp_path, only) == ["docs/d.txt", "src/b.py"]


def test_links_are_followed_only_to_files_of_the_tree(tmp_path):
    make(tmp_path, "outside", "root/d/file")
    root = tmp_path / "root"
    (root / "inner").symlink_to("d/file")
    (root / "out").symlink_to("../outside")
    (root / "up").symlink_to("..")
    (root / "dir").symlink_to("d")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    assert files(root) == ["d/file", "inner"]
    assert left_out(root) == dict.fromkeys(["dangling", "dir", "loop", "out", "up"], False)


def test_a_root_may_be_a_link(tmp_path):
    make(tmp_path, "real/a", "real/b")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "l").symlink_to("a")
    assert files(tmp_path / "link") == ["a", "b", "l"]


def test_what_is_no_file_is_left_out(tmp_path):
    make(tmp_path, "a")
    os.mkfifo(tmp_path / "pipe")
    assert files(tmp_path) == ["a"]
    assert left_out(tmp_path) == {"pipe": False}
    assert [found.failed for found in walk(str(tmp_path / "pipe"), ANY)] == [True]


def test_an_absent_root_is_a_failure(tmp_path):
    assert left_out(tmp_path / "absent") == {".": True}


def test_the_store_is_not_entered(tmp_path):
    make(tmp_path, "a", "store/log/1.seg")
    found = (tmp_path / "store").stat()
    selection = Selection(avoid=(found.st_dev, found.st_ino))
    assert files(tmp_path, selection) == ["a"]
    assert left_out(tmp_path / "store", selection) == {".": False}


def test_a_tree_deeper_than_pythons_stack(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1100):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    make(tmp_path, "file")
    found = files(tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for shutil as well
    assert found == ["file"]


def test_reading_stops_at_the_limit(tmp_path):
    make(tmp_path, "12345")
    file = File(str(tmp_path / "12345"), "12345", 5)
    assert read(file, 5) == b"12345"
    assert read(file, 4) is None


def test_reading_goes_on_to_the_end_of_a_file_that_has_grown(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * 200_000)
    assert read(File(str(path), "log", 10), 1 << 20) == b"x" * 200_000


def test_what_became_a_pipe_or_a_link_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no longer a regular file"):
        read(File(str(tmp_path / "pipe"), "pipe", 0), 10)
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic link"):
        read(File(str(tmp_path / "link"), "link", 0), 10)
