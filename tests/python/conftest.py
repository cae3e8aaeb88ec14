"""What every black-box test may ask for: the built program, the source tree, a place for downloads, a running server.

HEADRACE_BUILD_DIR names another build tree than build/release.
"""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

SOURCE = pathlib.Path(__file__).resolve().parents[2]

try:  # the fixtures of a running server, see server_fixture.py
    from server_fixture import *  # noqa: F401,F403
except ModuleNotFoundError as missing:
    if missing.name != "server_fixture":
        raise


@pytest.fixture(scope="session")
def source_dir():
    """The checkout."""
    return SOURCE


@pytest.fixture(scope="session")
def build_dir():
    """The build tree under test; programs lie in its bin/."""
    path = pathlib.Path(os.environ.get("HEADRACE_BUILD_DIR", SOURCE / "build" / "release")).resolve()
    assert (path / "bin").is_dir(), f"{path} is not built: run ./dev test, or cmake --preset release && cmake --build --preset release"
    return path


@pytest.fixture(scope="session")
def headrace(build_dir):
    """Path of the program."""
    return build_dir / "bin" / "headrace"


@pytest.fixture(scope="session")
def tiny(source_dir):
    """Folder of the embedded model."""
    return source_dir / "csrc" / "embedded" / "tiny"


@pytest.fixture(scope="session")
def cache_dir(source_dir):
    """A folder that survives between runs, for downloaded packages; ignored by git."""
    path = source_dir / ".cache"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def litellm_python(source_dir):
    """A Python that has litellm (which pins another version of the openai package than the one tested beside it)."""
    path = source_dir / ".venv-litellm" / "bin" / "python"
    assert path.exists(), "run ./dev test once: it makes .venv-litellm"
    return path
