"""What every test shares.

A test that needs what this machine does not have (``root`` ...) is skipped. ``KVSAGE_REQUIRE``,
a list separated by commas or ``all``, makes it fail instead, so that green can mean that all ran.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing("root")


def missing(what: str) -> None:
    required = os.environ.get("KVSAGE_REQUIRE", "").split(",")
    if what in required or "all" in required:
        pytest.fail(f"{what} is required by KVSAGE_REQUIRE", pytrace=False)
    pytest.skip(f"needs {what}")
