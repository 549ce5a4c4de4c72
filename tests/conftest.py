"""What every test shares.

A test that needs what this machine does not have (``root`` ...) is skipped. ``KVSAGE_REQUIRE``,
a list separated by commas or ``all``, makes it fail instead, so that green can mean that all ran.

Hypothesis draws few examples, so that the tests run often; ``HYPOTHESIS_PROFILE=thorough`` makes
it search for long. Tests that want more or fewer than others say so as a share of that number.

A store that is opened with a small ``content_bytes_min`` cuts values into small pieces here, so
that trees are everywhere; those of the command line alone are as they are for a user.
"""

import os

import pytest
from hypothesis import settings

from kvsage.engine import cutting

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default")
)


@pytest.fixture(autouse=True)
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cli" not in request.path.parts:
        monkeypatch.setattr(cutting, "PIECE_UNIT_LEAST", 64)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing("root")


def missing(what: str) -> None:
    required = os.environ.get("KVSAGE_REQUIRE", "").split(",")
    if what in required or "all" in required:
        pytest.fail(f"{what} is required by KVSAGE_REQUIRE", pytrace=False)
    pytest.skip(f"needs {what}")
