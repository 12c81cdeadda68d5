"""Many more of the cases of tests/core/test_fuzz.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from killing import ROOT as _  # noqa: F401 - puts tests/core on the path
from test_fuzz import config_case, parquet_case, raw_case

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(("case", "count"), [(raw_case, 2000), (parquet_case, 1000), (config_case, 500)])
def test_garbage_is_read_or_refused(case: Any, count: int, tmp_path: Path) -> None:
    found = []
    for number in range(10_000, 10_000 + count):
        found.append(case(tmp_path / str(number), number))
        shutil.rmtree(tmp_path / str(number))
    assert {"read", "refused"} == set(found)
