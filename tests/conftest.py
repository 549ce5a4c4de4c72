"""What every test shares.

A test that needs what this machine does not have (``root`` ...) is skipped. ``KVSAGE_REQUIRE``,
a list separated by commas or ``all``, makes it fail instead, so that green can mean that all ran.

Hypothesis draws few examples, so that the tests run often; ``HYPOTHESIS_PROFILE=thorough`` makes
it search for long. Tests that want more or fewer than others say so as a share of that number.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default")
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing("root")


def missing(what: str) -> None:
    required = os.environ.get("KVSAGE_REQUIRE", "").split(",")
    if what in required or "all" in required:
        pytest.fail(f"{what} is required by KVSAGE_REQUIRE", pytrace=False)
    pytest.skip(f"needs {what}")
