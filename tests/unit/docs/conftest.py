"""Documents are tested by reading them: their tables, blocks and links against the code."""

import pytest


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory to stand in, so that a block may name its store as it likes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
