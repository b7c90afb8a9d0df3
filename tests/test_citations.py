"""Every citation in docstrings, comments and pages leads somewhere: sections of docs/specification.md and of
the papers, and files of this repository."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPECIFICATION = ROOT / "docs" / "specification.md"

PAPER_SECTIONS = {"1", "2", "3", "4", "4.1", "4.2", "5", "5.1", "5.2", "5.3", "6"} | {
    f"A.{number}" for number in range(1, 8)
}
DETR_SECTIONS = {"1", "2", "3", "3.1", "3.2", "4", "4.1", "4.2", "4.3", "4.4", "5"}

# Files of the authors' repositories that the specification and docs/coming_from.md name.
AUTHORS_FILES = {
    *("benchmark.py", "engine.py", "main.py", "datasets/coco.py", "datasets/coco_eval.py"),
    *("datasets/samplers.py", "datasets/transforms.py", "models/backbone.py", "models/deformable_detr.py"),
    *("models/deformable_transformer.py", "models/detr.py", "models/matcher.py", "models/transformer.py"),
    *("models/position_encoding.py", "models/segmentation.py", "util/misc.py"),
}
# Pages that name other projects' files, or what was decided against.
OTHER_FILES = re.compile(r"docs/(coming_from\.md|decisions/.*)")
# Files of users, of a run's output, and of the C library.
FOREIGN_FILES = {
    "config.yaml",
    "data.yaml",
    "run.yaml",
    "your_program.py",
    "detr_on_ray.py",
    "summary.md",
    "malloc.h",
    "b.py",
}

# Pages that are about the code, whose folders are those of the repository.
GUIDES = ("architecture", "code_tour", "how_it_works", "operator", "speed", "releasing")

SUFFIXES = ("py", "cpp", "h", "md", "sh", "toml", "yaml")
FILE = re.compile(rf"(?<![\w./-])((?:[\w-]+/)*[\w-]+\.(?:{'|'.join(SUFFIXES)}))\b(?![/.]\w)")


@cache
def tracked_files() -> tuple[str, ...]:
    """Paths of the repository's files, also those that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no clone of the repository")
    return tuple(path for path in listed.splitlines() if (ROOT / path).is_file())


@cache
def path_endings() -> frozenset[str]:
    """Each file by every end of its path: a/b.py and b.py."""
    parts = [Path(path).parts for path in tracked_files()]
    return frozenset("/".join(each[start:]) for each in parts for start in range(len(each)))


def prose_of(path: str, text: str) -> str:
    """What people read in a file: a page whole; of code, its comments and docstrings."""
    if path.endswith(".md"):
        return text
    if not path.endswith(".py"):
        mark = "//" if path.endswith((".cpp", ".h")) else "#"
        return "\n".join(line.partition(mark)[2] for line in text.splitlines())
    comments = [
        token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)
    ]
    return "\n".join([*docstrings, "\n".join(comments)])


@cache
def prose() -> dict[str, str]:
    """What people read, by file, on one line each."""
    chosen = [
        path
        for path in tracked_files()
        if path.endswith((".py", ".md", ".cpp", ".h", ".sh", ".toml", ".yaml"))
        and path not in ("docs/specification.md", "tests/test_citations.py")
    ]
    texts = {path: prose_of(path, (ROOT / path).read_text(encoding="utf-8")) for path in chosen}
    return {path: " ".join(text.split()) for path, text in texts.items()}


def sections() -> set[str]:
    headings = re.findall(r"^##+ ([\d.]+?)\.? ", SPECIFICATION.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) == len(set(headings)), "a section's number is there twice"
    return set(headings)


def cited_sections(text: str) -> tuple[list[str], int]:
    """The sections cited as "specification §3.1, §4.2", and how many § there are in all."""
    lists = re.findall(r"specification (§[\d.]*\d(?:(?:, | and )§[\d.]*\d)*)", text)
    return [number for each in lists for number in re.findall(r"§([\d.]*\d)", each)], text.count("§")


def test_sections_of_the_specification_exist() -> None:
    assert cited_sections("(specification §3.1, §11, 10; §4)") == (["3.1", "11"], 3)
    known, wrong, number = sections(), [], 0
    for path, text in prose().items():
        cited, signs = cited_sections(text)
        number += len(cited)
        wrong += [f"{path}: §{section}" for section in cited if section not in known]
        if signs != len(cited):
            wrong.append(f"{path}: a § that does not follow the word specification")
    assert not wrong
    assert number > 40


@pytest.mark.parametrize(
    ("source", "known"),
    [(r"[Pp]aper(?:,|:|'s|)", PAPER_SECTIONS), ("DETR,", DETR_SECTIONS)],
    ids=["the paper", "DETR's paper"],
)
def test_sections_of_the_papers_exist(source: str, known: set[str]) -> None:
    one = r"(?:A\.)?\d(?:\.\d)?"
    pattern = rf"{source} (?:sections?|appendix) ({one}(?:(?:, | and | and appendix |, appendix ){one})*)"
    cited = {
        (path, number)
        for path, text in [*prose().items(), ("docs/specification.md", SPECIFICATION.read_text())]
        for match in re.findall(pattern, text)
        for number in re.findall(one, match)
    }
    assert not {(path, number) for path, number in cited if number not in known}
    assert cited


def cited_files(text: str) -> set[str]:
    """Names in capitals stand for any file: NAME.md, FILE.yaml."""
    names = FILE.findall(re.sub(r"https?://\S+", "", text))
    return {name for name in names if Path(name).name not in FOREIGN_FILES and not Path(name).stem.isupper()}


def test_files_that_are_cited_exist() -> None:
    assert cited_files("see models/neck.py, a.b.py, https://x.org/y.py") == {"models/neck.py"}
    known = path_endings()
    texts = {path: text for path, text in prose().items() if not OTHER_FILES.fullmatch(path)}
    assert not sorted(f"{path}: {name}" for path, text in texts.items() for name in cited_files(text) - known)


def test_folders_that_the_guides_name_exist() -> None:
    guides = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in GUIDES))
    known = {"/".join(Path(path).parts[a:b]) for path in tracked_files() for a in range(9) for b in range(9)}
    named = {(guide, name) for guide in guides for name in re.findall(r"`((?:[\w-]+/)+)`", prose()[guide])}
    assert len(named) > 20
    assert not {(guide, name) for guide, name in named if name.removesuffix("/") not in known}


def test_files_that_the_specification_cites_exist() -> None:
    text = SPECIFICATION.read_text(encoding="utf-8")
    sources = " ".join(re.findall(r"^\*[^*]*?code:[^*]*\*$", text, re.MULTILINE))
    assert cited_files(sources) == AUTHORS_FILES
    own = re.sub(r"^\*[^*]*?code:[^*]*\*$", "", text, flags=re.MULTILINE)
    assert cited_files(own) - path_endings() == {"benchmark.py"}


def test_nothing_outside_of_the_repository_is_named() -> None:
    """Records of commands (JSON) may: they say what was typed."""
    outside = re.compile(r"\.\./shared|/work/")
    assert not [path for path, text in prose().items() if outside.search(text)]
