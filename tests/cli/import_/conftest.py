"""Fixtures of the tests that import and export files."""

import pytest


@pytest.fixture(autouse=True)
def _work_in_tmp_path(tmp_path, monkeypatch):
    """Tests name files without a folder."""
    monkeypatch.chdir(tmp_path)
