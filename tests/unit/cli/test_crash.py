import subprocess
import sys

import pytest

from kvsage import LMDBStore
from kvsage.cli import crash
from kvsage.cli.crash import Killed, kill_writer, survey
from kvsage.cli.crash_writer import LARGE_BYTES, LARGE_EVERY, key_of, payload
from kvsage.errors import StoreUnavailableError


def test_payloads_differ_and_some_are_large():
    sizes = [len(payload(number)) for number in range(1, LARGE_EVERY + 1)]
    assert sizes[-1] == LARGE_BYTES
    assert max(sizes[:-1]) < 15_000
    assert payload(7) == payload(7) != payload(8)[: len(payload(7))]


def test_a_killed_writer_loses_nothing_acknowledged(store):
    with LMDBStore(store):
        pass
    killed = kill_writer(store)
    assert len(killed.acknowledged) > 0
    assert killed.acknowledged == tuple(range(1, len(killed.acknowledged) + 1))
    assert killed.begun - len(killed.acknowledged) in (0, 1)
    with LMDBStore(store) as opened:
        found = survey(opened, killed)
        assert opened.verify(deep=True).ok
    assert found.lost == ()
    assert found.interrupted in ("none", "absent", "whole")


@pytest.mark.parametrize(
    ("saved", "killed", "lost", "interrupted"),
    [
        ({1: payload(1), 2: payload(2)}, Killed((1, 2), 2, 1.0), (), "none"),
        ({1: payload(1)}, Killed((1,), 2, 1.0), (), "absent"),
        ({1: payload(1), 2: payload(2)}, Killed((1,), 2, 1.0), (), "whole"),
        ({1: payload(1), 2: payload(2)[:-1]}, Killed((1,), 2, 1.0), (), "torn"),
        ({2: payload(2), 3: "wrong"}, Killed((1, 2, 3), 3, 1.0), (1, 3), "none"),
        ({}, Killed((), 0, 0.0), (), "none"),
    ],
)
def test_survey_sees_what_is_lost(store, saved, killed, lost, interrupted):
    with LMDBStore(store) as opened:
        opened.save_many({key_of(number): value for number, value in saved.items()})
        found = survey(opened, killed)
    assert (found.lost, found.interrupted) == (lost, interrupted)


@pytest.mark.parametrize(
    ("said", "moment"),
    [
        (b"", False),
        (b">272\n", True),
        (b"<271\n>272\n", True),
        (b"<271\n>272", False),  # half a line
        (b">272\n<272\n", False),
        (b">271\n", False),
        (b">16\n", False),
    ],
)
def test_the_moment_to_kill_is_in_a_long_write(said, moment):
    assert crash._in_mid_write(said) is moment


def test_a_writer_that_ends_by_itself_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="ended by itself"):
        kill_writer(tmp_path / "file")


def test_the_writer_ends_when_nobody_listens(store):
    with LMDBStore(store):
        pass
    writer = subprocess.Popen(
        [sys.executable, "-m", "kvsage.cli.crash_writer", store], stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b">1\n"
    writer.stdout.close()
    assert writer.wait(timeout=60) == 1
