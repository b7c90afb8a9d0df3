"""Where real data lies: the folder shared/ beside the repository, absent on other people's machines."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"real data is not here: {SHARED_DATA} does not exist"
)
