"""Shared fixtures. Backend and log level are set before anything loads keras."""

import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """Return the checkout's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Return the folder of shared real data, or skip with the reason."""
    folder = pathlib.Path(os.environ.get("LIGHTNETS_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data in {folder}; set LIGHTNETS_SHARED to its folder")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep every test out of the user's weight cache."""
    home = tmp_path_factory.getbasetemp() / "lightnets-home"
    monkeypatch.setenv("KERAS_LIGHTNETS_HOME", str(home))
