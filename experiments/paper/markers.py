"""Writing tables between two markers of a Markdown file."""

from __future__ import annotations

from pathlib import Path

from deformable_detr.errors import UserError
from deformable_detr.files import write_text

BEGIN, END = "<!-- paper summary: begin -->", "<!-- paper summary: end -->"


def split_at_markers(path: Path) -> tuple[str, str]:
    """Return the text before and after the markers.

    Raises:
        UserError: if the file cannot be read or has no markers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--into {path} cannot be read ({error.strerror}): name a Markdown file.") from error
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise UserError(
            f"--into {path} has no place for the tables: put the lines {BEGIN} and {END} into it."
        )
    return before, after


def put_between(path: Path, text: str) -> None:
    """Replace the text between the markers with `text`.

    Raises:
        UserError: if the file cannot be read or has no markers.
    """
    before, after = split_at_markers(path)
    write_text(path, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
