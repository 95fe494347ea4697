"""What all tests share: Hypothesis profiles, real data, a real PostgreSQL.

Hypothesis has no deadline, because a kernel's first call compiles it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres import PostgresServer

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Give the folder of shared real data: BANDIT_DATA, or ../shared/data beside the project."""
    folder = Path(os.environ.get("BANDIT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder} (set BANDIT_DATA)")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL of this test run's own, on the first demand."""
    server = PostgresServer()
    yield server
    server.stop()
