"""Check that a tag, pyproject.toml, CITATION.cff and CHANGELOG.md name the same version:
`python scripts/check_version.py v0.1.0`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """Return a sentence for each file that names another version than pyproject.toml, or has no date for
    it."""
    version: str = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but pyproject.toml has version {version}")
    if not re.search(
        rf"(?m)^version: {re.escape(version)}$", (root / "CITATION.cff").read_text(encoding="utf-8")
    ):
        found.append(f"CITATION.cff does not have version {version}")
    heading = rf"(?m)^## \[?{re.escape(version)}\]? .*\d{{4}}-\d{{2}}-\d{{2}}"
    if not re.search(heading, (root / "CHANGELOG.md").read_text(encoding="utf-8")):
        found.append(f"CHANGELOG.md has no heading with {version} and its date")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.argv[1])) or 0)
