"""Whether an error concerns one picture or the source of all."""

from __future__ import annotations

import pytest

from deformable_detr.bulk import reading
from deformable_detr.bulk.sources import Picture
from deformable_detr.errors import UserError


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(url: str) -> bytes:
        raise UserError(f"{url} cannot be read (403): check the URL and access.") from PermissionError(403)

    monkeypatch.setattr(reading, "read_bytes", read_bytes)


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("root", "root_exists", "error"),
    [
        ("s3://store/in", True, UserError),
        ("s3://store/in", False, reading.SourceLostError),
        ("", True, reading.SourceLostError),  # perhaps the key has expired, which concerns all pictures
    ],
)
def test_access_denied(
    root: str, root_exists: bool, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_exists", lambda url: root_exists)
    with pytest.raises(error, match="403"):
        [read() for read in reading.readers([Picture("s3://store/in/a.jpg", root)], 10**6)]
