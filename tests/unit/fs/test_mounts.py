"""Which file system a path lies on, by tables as the kernel writes them."""

from pathlib import Path

import pytest

from kvsage.errors import UnsupportedFilesystemError
from kvsage.fs.mounts import MOUNTS, filesystem_of, refuse_network_filesystem

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw
30 22 0:40 / /mnt/data rw - nfs4 server:/export rw,vers=4.2
31 30 8:2 / /mnt/data/local rw shared:9 master:3 - xfs /dev/sdb1 rw
32 22 0:41 / /mnt/two\040words rw - cifs //server/share rw
33 22 0:42 / /mnt/tab\011and\134slash rw - 9p host rw
34 22 8:3 / /mnt/over rw - ext4 /dev/sdc1 rw
35 34 0:43 / /mnt/over rw - fuse.sshfs host: rw
36 22 0:44 / /mnt/under rw - nfs server:/a rw
37 36 8:4 / /mnt/under rw - ext4 /dev/sdd1 rw
"""
CONTAINER = "1 0 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home/me/store", "ext4"),
        ("/mnt", "ext4"),
        ("/mnt/data", "nfs4"),
        ("/mnt/data/store", "nfs4"),
        ("/mnt/database", "ext4"),
        ("/mnt/data/local", "xfs"),
        ("/mnt/data/local/store", "xfs"),
        ("/mnt/data/locale", "nfs4"),
        ("/mnt/two words/store", "cifs"),
        ("/mnt/two", "ext4"),
        ("/mnt/tab\tand\\slash/store", "9p"),
        ("/mnt/over/store", "fuse.sshfs"),
        ("/mnt/under/store", "ext4"),
        ("/dev/shm", "devtmpfs"),
    ],
)
def test_the_longest_mount_wins_and_of_two_the_later(path, kind):
    assert filesystem_of(Path(path), TABLE) == kind


def test_lines_that_are_none_are_passed_over():
    noise = "\n\nshort - nfs\nno separator here at all / /mnt\n1 0 0:5 / / rw -\n"
    assert filesystem_of(Path("/"), noise) == ""
    assert filesystem_of(Path("/"), noise + TABLE + noise) == "ext4"


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    table = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / {tmp_path}/real rw - nfs s:/ rw\n"
    assert filesystem_of(tmp_path / "link" / "store", table) == "nfs"
    assert filesystem_of(tmp_path / "other", table) == "ext4"


@pytest.mark.parametrize("path", ["/mnt/data/store", "/mnt/two words", "/mnt/over/x"])
def test_network_file_systems_are_refused_by_name(path):
    kind = filesystem_of(Path(path), TABLE)
    with pytest.raises(UnsupportedFilesystemError) as raised:
        refuse_network_filesystem(Path(path), TABLE)
    assert path in str(raised.value)
    assert f"({kind})" in str(raised.value)
    assert "network_filesystem=True" in str(raised.value)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "virtiofs"])
def test_kinds_that_are_refused(kind):
    with pytest.raises(UnsupportedFilesystemError):
        refuse_network_filesystem(Path("/"), f"1 0 0:1 / / rw - {kind} source rw\n")


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "fuse.fuseblk", "apfs"]
)
def test_kinds_that_are_accepted(kind):
    refuse_network_filesystem(Path("/"), f"1 0 0:1 / / rw - {kind} source rw\n")


def test_the_root_of_a_container_is_accepted():
    refuse_network_filesystem(Path("/store"), CONTAINER)


def test_a_local_disk_below_a_network_one_is_accepted():
    refuse_network_filesystem(Path("/mnt/data/local/store"), TABLE)


def test_without_a_table_nothing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("kvsage.fs.mounts.MOUNTS", tmp_path / "gone")
    refuse_network_filesystem(tmp_path)
    monkeypatch.setattr("kvsage.fs.mounts.MOUNTS", tmp_path)  # cannot be read either
    refuse_network_filesystem(tmp_path)


def test_the_systems_own_table_is_read(monkeypatch, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_bytes(b"1 0 0:1 / /caf\xe9 rw - ext4 x rw\n2 0 0:1 / / rw - nfs server:/ rw\n")
    monkeypatch.setattr("kvsage.fs.mounts.MOUNTS", table)
    with pytest.raises(UnsupportedFilesystemError):
        refuse_network_filesystem(tmp_path)
    assert Path("/proc/self/mountinfo") == MOUNTS


def test_a_platform_without_flock_is_refused(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(UnsupportedFilesystemError, match="Linux"):
        refuse_network_filesystem(Path("/"), CONTAINER)
