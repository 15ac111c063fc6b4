"""Fixtures that every part of the tests may ask for; tiny models live beside the tests that use them."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models, vectors and prompts that belongs to no part of this repository; skips without it."""
    candidates = [REPOSITORY.parent / "shared" / "data", REPOSITORY / "shared" / "data"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip("shared/data is neither beside nor below the repository: tests on real models need it")
