# SPDX-License-Identifier: Apache-2.0
"""One master seed (``LUTRA_SEED``), derived per test, printed with every failure beside the command that reruns it."""

import os
import zlib
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

MASTER_SEED = int(os.environ.get("LUTRA_SEED", "1"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This test's seed: of the master seed and the test's name, so that tests do not shift each other's."""
    return zlib.crc32(f"{MASTER_SEED} {request.node.nodeid}".encode())


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Random numbers of this test."""
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("rerun", f"LUTRA_SEED={MASTER_SEED} pytest '{item.nodeid}'"))
    return report
