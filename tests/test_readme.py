"""Every `deformable-detr` line of README.md is understood by its command's parser (none is run)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deformable_detr.cli import COMMANDS, PROGRAM

README = Path(__file__).resolve().parents[1] / "README.md"


def commands(text: str) -> list[list[str]]:
    """Arguments of each command in ```bash blocks; lines may be continued by a backslash, `#` comments."""
    found = []
    for block in re.findall(r"^ *```(?:bash|sh|console|shell)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            # of several commands on a line and of variables before a command, what runs the program
            for part in re.split(r"&&|\|\||;|\|", line):
                words = shlex.split(part.strip().removeprefix("$ "), comments=True)
                programs = [index for index, word in enumerate(words) if Path(word).name == PROGRAM]
                if programs:
                    found.append(words[programs[0] + 1 :])
    return found


def parse(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        return
    command, *rest = arguments
    assert command in COMMANDS, f"there is no command {command}"
    # What a line resumes or starts from is not there.
    rest = [word for word in rest if word != "--resume"]
    for option in ("--init-from", "--config"):
        if option in rest:
            index = rest.index(option)
            del rest[index : index + 2]
    if "-h" not in rest and "--help" not in rest:
        COMMANDS[command].build(rest).parse_args(rest)


def test_commands_are_found() -> None:
    text = (
        "# x\n```bash\nmake demo   # first\n"
        "deformable-detr predict MODEL 'a b.jpg' \\\n    --output out   # second\n"
        "cd x && CUDA_VISIBLE_DEVICES=0 .venv/bin/deformable-detr doctor\n```\n"
        "```python\ndeformable-detr nonsense\n```\n  ```console\n  $ deformable-detr demo\n  ```\n"
    )
    assert commands(text) == [["predict", "MODEL", "a b.jpg", "--output", "out"], ["doctor"], ["demo"]]


@pytest.mark.parametrize("arguments", commands(README.read_text(encoding="utf-8")), ids=" ".join)
def test_a_command_of_the_readme_is_understood(arguments: list[str]) -> None:
    parse(arguments)


@pytest.mark.parametrize(
    "line", ["train data --model.nonsense 3", "predict MODEL", "fly MODEL", "evaluate M D --threshold x"]
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"nonsense|SOURCE|sources|no command|unrecognized"):
        parse(line.split())
