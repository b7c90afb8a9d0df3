"""Real data for tests: the repository's `data/`, which `scripts/get_data.sh` fills, or the folder
`shared/data` next to the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "data", ROOT.parent / "shared" / "data")
NOT_PUBLIC = ("eval_goldens",)  # ground truths and numbers of published evaluators, collected by hand


def data_set(name: str) -> Path:
    """Return a data set's folder, or a path inside it ("bccd_coco/annotations"); skip the test if it is
    missing."""
    top = Path(name).parts[0]
    for folder in FOLDERS:
        if (folder / top).is_dir():
            return folder / name
    if top in NOT_PUBLIC:
        pytest.skip(f"data/{top} is not here (it is not public)")
    pytest.skip(f"data/{top} is not here (scripts/get_data.sh {top})")
