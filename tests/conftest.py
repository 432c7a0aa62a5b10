"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def own_prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared images and hashes of all tests go to one temporary folder, never beside the user's data."""
    os.environ["AMIF_PREPARED"] = str(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets: `$DATA_ROOT`, or `shared/data` beside the clone."""
    candidates = [Path(os.environ["DATA_ROOT"])] if os.environ.get("DATA_ROOT") else []
    candidates.append(Path(__file__).resolve().parents[2] / "shared" / "data")
    for folder in candidates:
        if (folder / "vqa_rad").is_dir():
            return folder
    pytest.skip("real data sets not found (set DATA_ROOT to the folder that holds vqa_rad/)")
