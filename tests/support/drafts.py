"""Files that a killed writer leaves behind."""

from __future__ import annotations

from pathlib import Path

from deformable_detr.files import DRAFTS


def leave_draft(target: Path) -> Path:
    """Create a draft of `target` whose process has ended, and return its folder."""
    drafts = target.parent / DRAFTS
    room = drafts / "0123456789abcdef"
    (room / "new").mkdir(parents=True)
    (room / "new" / target.name).write_bytes(b"half of a")
    (drafts / f"{room.name}.lock").touch()
    return drafts
