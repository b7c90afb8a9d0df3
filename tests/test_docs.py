"""What README.md and docs/ say is true: links lead somewhere, commands are understood and run, Python runs,
tables are those of the code, and the site builds.

A page's blocks run in order, in one folder that holds what the pages speak of (`world`): tiny models and
pictures under the names that the pages use. A block whose first line is `# not tested: REASON` is parsed and
not run; the reasons are a short list. Indented blocks hold commands too; they are parsed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest
import torch
from PIL import Image

import deformable_detr
from deformable_detr.checkpoint import authors, save, transformers_format
from deformable_detr.cli.main import COMMANDS, main, parser_of
from deformable_detr.cli.messages import PROGRAM
from deformable_detr.cli.settings import changes
from deformable_detr.config import override, recipe
from deformable_detr.data.scenes import CLASS_NAMES
from deformable_detr.detections import ClassTable
from deformable_detr.inference.loading import new_checkpoint
from tests.support.made_runs import make_run
from tests.support.small_models import random_checkpoint, smallest_detr
from tests.support.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Commands that a page's blocks run here, each in a second or two with a tiny model. Of `train`, the slow part
# runs one update; the others are parsed.
RUNNING = {"inspect", "predict", "explain", "evaluate", "convert", "doctor"}
REASONS = {
    "needs a GPU",
    "needs several processes",
    "needs a running server",
    "needs a camera",
    "takes minutes",
}
MOST_UNTESTED = 16
CHROMIUM = "/usr/bin/chromium"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `untested`: why it does not run here, or nothing."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def untested(self) -> str:
        found = re.match(r"# not tested: (.*)\n", self.text)
        return found[1] if found else ""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(text: str, page: Path = ROOT / "README.md") -> list[Block]:
    found = []
    for match in re.finditer(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
        lines = [line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True)]
        found.append(Block(page, text[: match.start()].count("\n") + 1, match[2], "".join(lines)))
    return found


def commands(text: str) -> list[list[str]]:
    """Arguments of each `deformable-detr` of a shell's lines; these may be continued by a backslash."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        # of several commands on a line and of variables before a command, what runs the program
        for part in re.split(r"&&|\|\||;|\||&$", line):
            if not any(program in part for program in (PROGRAM, "-m deformable_detr", "-m experiments.")):
                continue
            words = shlex.split(part.strip().removeprefix("$ ").replace("[…]", ""), comments=True)
            for index, word in enumerate(words):
                if Path(word).name == PROGRAM or words[index - 1 : index + 1] == ["-m", "deformable_detr"]:
                    found.append(words[index + 1 :])
                    break
                if word.startswith("experiments.") and words[index - 1] == "-m":
                    found.append(words[index:])
                    break
    return found


def indented_commands(text: str) -> list[list[str]]:
    outside = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return commands(
        "\n".join(
            re.findall(
                rf"^    ((?:{PROGRAM}|python -m experiments\.\w+) (?:.*\\\n)*.*)$", outside, re.MULTILINE
            )
        )
    )


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


BLOCKS = [block for page in PAGES for block in blocks(text_of(page), page)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh", "console", "shell")]
COMMAND_LINES = [
    *((block.name, arguments) for block in SHELL for arguments in commands(block.text)),
    *(
        (str(page.relative_to(ROOT)), arguments)
        for page in PAGES
        for arguments in indented_commands(text_of(page))
    ),
]


def parse(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        return
    name, *rest = arguments
    # What a line starts from is not there.
    for option in ("--init-from", "--config"):
        if option in rest:
            index = rest.index(option)
            del rest[index : index + 2]
    if "-h" not in rest and "--help" not in rest:
        if name.startswith("experiments."):
            parser = import_module(f"{name}.__main__").COMMANDS.parser(rest)
        else:
            assert name in COMMANDS, f"there is no command {name}"
            parser = parser_of(name, rest)
        check_settings(parser.read(rest))


def check_settings(arguments: Namespace) -> None:
    """Fields are checked when the configuration is made."""
    if changed := changes(vars(arguments)):
        override(recipe(arguments.recipe or "deformable_detr_r50"), changed)


def test_blocks_and_commands_are_found() -> None:
    text = (
        "# x\n```bash\nmake demo   # first\n"
        "deformable-detr predict MODEL 'a b.jpg' \\\n    --output out   # second\n"
        "cd x && CUDA_VISIBLE_DEVICES=0 .venv/bin/deformable-detr doctor\n```\n"
        "```python\n# not tested: takes minutes\ndeformable-detr nonsense\n```\n"
        "  ```console\n  $ deformable-detr demo\n  ```\n"
        "\n    python -m experiments.paper queue \\\n        --output out\n"
    )
    found = blocks(text)
    assert [(block.line, block.language, block.untested) for block in found] == [
        (2, "bash", ""),
        (8, "python", "takes minutes"),
        (12, "console", ""),
    ]
    assert commands(found[0].text) == [["predict", "MODEL", "a b.jpg", "--output", "out"], ["doctor"]]
    assert commands(found[2].text) == [["demo"]]
    assert indented_commands(text) == [["experiments.paper", "queue", "--output", "out"]]


@pytest.mark.parametrize(
    "arguments", [line for _, line in COMMAND_LINES], ids=[f"{n} {' '.join(a)}" for n, a in COMMAND_LINES]
)
def test_a_command_is_understood(arguments: list[str]) -> None:
    parse(arguments)


@pytest.mark.parametrize(
    "line",
    [
        "train data --model.nonsense 3",
        "train data --train.epochs nonsense",
        "predict MODEL",
        "fly MODEL",
        "evaluate M D --threshold x",
    ],
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"nonsense|SOURCE|sources|no command|unrecognized"):
        parse(line.split())


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shell = "\n".join([*(block.text for block in SHELL), *map(text_of, PAGES)])
    told = set(re.findall(r"^(?:    )?make ([\w-]+)(?: *#.*)?$", shell, re.MULTILINE))
    assert told <= targets
    assert told


def test_untested_blocks_are_few_and_say_why() -> None:
    reasons = [(block.name, block.untested) for block in BLOCKS if block.untested]
    assert not [each for each in reasons if each[1] not in REASONS]
    assert len(reasons) <= MOST_UNTESTED, reasons


# ---------------------------------------------------------------------- what pages speak of


def write_picture(path: Path, size: tuple[int, int] = (360, 480)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size[::-1]).save(path)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As training leaves it, with a tiny model that finds something everywhere."""
    torch.manual_seed(0)
    config = tiny_config()
    folder = make_run(tmp_path_factory.mktemp("model") / "run", config, [0.1, 0.2])
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().rpartition("\n")[0] + "\n")
    table = ClassTable(CLASS_NAMES, tuple(range(1, 7)))
    checkpoint = new_checkpoint(config.model, table, config.data, config.recipe, None)
    with torch.no_grad():
        for name, parameter in checkpoint.model.named_parameters():
            if "class_head" in name and name.endswith("bias"):
                parameter.fill_(0.5)
    for name in ("best", "last"):
        save(folder / "checkpoints" / name, checkpoint)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The tiny data set with a test split, which is the validation split once more."""
    root = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(tiny_data, root)
    shutil.copytree(root / "val", root / "test")
    shutil.copy(root / "annotations/instances_val.json", root / "annotations/instances_test.json")
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stand-ins for an authors' file and a model of the hub, as a folder: a small DETR of these classes."""
    checkpoint = random_checkpoint(smallest_detr(num_classes=6), ClassTable(CLASS_NAMES, tuple(range(1, 7))))
    folder = tmp_path_factory.mktemp("published")
    authors.save(folder / "r50.pth", checkpoint)
    transformers_format.save(folder / "hub", checkpoint)
    return folder / "r50.pth", folder / "hub"


RUNS = ("runs/mine", "runs/bccd", "runs/x", "demo_output/run")
DATA = (
    "DATA",
    "path/to/data",
    "data/bccd_coco",
    "demo_output/data",
    "path/to/bccd",
    "path/to/coco",
    "data/aerial_cars",
)
PUBLISHED = ("r50_deformable_detr-checkpoint.pth", "SenseTime/deformable-detr")
PICTURES = (
    "a.jpg",
    "b.jpg",
    "aerial.jpg",
    "cells.jpg",
    "street.jpg",
    "photos/a.jpg",
    "photos/b.jpg",
    "more/c.jpg",
    "more.png",
)


@pytest.fixture
def world(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_folder: Path,
    data: Path,
    published: tuple[Path, Path],
) -> Path:
    """The folder that pages' blocks run in; what they write stays there."""
    here = tmp_path / "repository"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in RUNS:
        link(here / name, run_folder)
    for name in DATA:
        link(here / name, data)
    for name, target in zip(PUBLISHED, published, strict=True):
        link(here / name, target)
    for name in PICTURES:
        write_picture(here / name)
    return here


def link(path: Path, target: Path) -> None:
    path = Path(os.path.normpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def names_of_readme() -> dict[str, Any]:
    from tests.support.foreign_models import small_transformers_model

    torch.manual_seed(0)
    cells = 100 * 134 + 50 * 67
    weights = torch.rand(1, 5, 8, 2, 4)
    return {
        "images": [torch.randn(3, 64, 80)],
        "value": torch.randn(1, cells, 8, 32),
        "shapes": ((100, 134), (50, 67)),
        "sampling_locations": torch.rand(1, 5, 8, 2, 4, 2),
        "attention_weights": weights / weights.sum((-2, -1), keepdim=True),
        "reference": torch.rand(1, 5, 2, 2),
        "sampling_offsets": torch.randn(1, 5, 8, 2, 4, 2),
        "attention_logits": torch.randn(1, 5, 8, 8),
        "model": small_transformers_model("deformable_detr"),
        "inputs": {"pixel_values": torch.randn(1, 3, 96, 96)},
    }


def names_of_predict() -> dict[str, Any]:
    av = pytest.importorskip("av", reason="PyAV, of the extra [video], is not installed")
    with av.open("clip.mp4", "w") as clip:
        stream = clip.add_stream("mpeg4", rate=10, width=96, height=64)
        for _ in range(3):
            clip.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (96, 64)))))
        clip.mux(stream.encode())
    return {"detector": deformable_detr.load("runs/mine")}


def names_of_scale() -> dict[str, Any]:
    pytest.importorskip("pyarrow", reason="pyarrow, of the extra [scale], is not installed")
    words = "predict runs/mine photos --format parquet --output tables --threshold 0"
    assert main(words.split()) == 0
    return {}


# Names that a page's Python takes for granted, and files that it needs besides those of `world`.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": names_of_readme,
    "docs/predict.md": names_of_predict,
    "docs/scale.md": names_of_scale,
}


def pages_with(language: str) -> list[Any]:
    found = dict.fromkeys(block.page for block in BLOCKS if block.language == language and not block.untested)
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page: Path, world: Path) -> None:
    import deformable_detr as dd

    names: dict[str, Any] = {"dd": dd, **GIVEN.get(str(page.relative_to(ROOT)), dict)()}
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            if not block.untested:
                exec(code, names)


def lines_to_run(page: Path) -> list[list[str]]:
    return [
        arguments
        for block in SHELL
        if block.page == page and not block.untested
        for arguments in commands(block.text)
        if arguments and arguments[0] in RUNNING and "--help" not in arguments
    ]


# Pages whose commands run, in `make test` or with the slow tests; the others' are tested beside their code.
QUICK_PAGES = {"docs/quickstart.md", "docs/convert.md", "docs/doctor.md"}
SLOW_PAGES = {
    *("README.md", "docs/tutorial.md", "docs/train.md", "docs/evaluate.md", "docs/explain.md"),
    *("docs/training.md", "docs/troubleshooting.md"),
    "docs/scale.md",
}


def pages_to_run() -> list[Any]:
    slow = [pytest.param(ROOT / page, id=page, marks=pytest.mark.slow) for page in sorted(SLOW_PAGES)]
    quick = [pytest.param(ROOT / page, id=page) for page in sorted(QUICK_PAGES)]
    return [page for page in quick + slow if lines_to_run(page.values[0])]


@pytest.mark.parametrize("page", pages_to_run())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of names that Ray has deprecated and uses itself
def test_commands_run(page: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in lines_to_run(page):
        assert main(arguments) == 0, f"{' '.join(arguments)}: {capsys.readouterr().err}"


TRAININGS = [
    (block.name, arguments)
    for block in SHELL
    if not block.untested
    for arguments in commands(block.text)
    if arguments[:1] == ["train"] and {"deformable_detr_lite", "demo_output/run"} & {*arguments}
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [line for _, line in TRAININGS], ids=[name for name, _ in TRAININGS])
def test_a_training_starts(arguments: list[str], tmp_path: Path, world: Path) -> None:
    small = ["--train.max_steps", "1", "--train.epochs", "1", "--data.num_workers", "0"]
    rest = arguments[: arguments.index("--output")] + arguments[arguments.index("--output") + 2 :]
    assert main([*rest, *small, "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").is_file()


# ---------------------------------------------------------------------- links, tables, the site


def slug(heading: str) -> str:
    """A heading's anchor, as Python-Markdown makes it."""
    plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(
        r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip().lower()
    )


def anchors(page: Path) -> set[str]:
    prose = re.sub(r"^( *)```.*?^\1```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    documented = re.findall(r"^::: (\S+)$", prose, re.MULTILINE)
    return {*documented} | {
        match[1] if (match := re.search(r"\{ *#([\w-]+) *\}", each)) else slug(each) for each in headings
    }


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_and_pictures_are_there(page: Path) -> None:
    prose = re.sub(r"^( *)```.*?^\1```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?:|mailto:", target):
            continue
        path, anchor = urldefrag(target)
        to = (page.parent / unquote(path)).resolve() if path else page
        assert to.exists(), f"{page}: {target}"
        # The site holds docs/ and nothing else.
        assert page.name == "README.md" or to.is_relative_to(ROOT / "docs"), f"{page}: {target}"
        if anchor and to.suffix == ".md":
            assert anchor in anchors(to), f"{page}: {target}"


def tables() -> Any:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["configuration.md", "recipes.md"])
def test_tables_are_those_of_the_code(page: str) -> None:
    written = tables().PAGES[page]()
    assert text_of(ROOT / "docs" / page) == written, "run `python docs/tables.py`"


def test_each_page_is_in_the_navigation() -> None:
    import tomllib

    def files(entries: Any) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        values = entries.values() if isinstance(entries, dict) else entries
        return [name for value in values for name in files(value)]

    listed = files(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])


def test_each_command_and_public_name_is_documented() -> None:
    index, api = text_of(ROOT / "docs" / "index.md"), text_of(ROOT / "docs" / "api.md")
    assert not [name for name in COMMANDS if not re.search(rf"^\| \[?`{name}`", index, re.MULTILINE)]
    assert not [
        name for name in deformable_detr.__all__ if not re.search(rf"^::: .*\b{name}\b", api, re.MULTILINE)
    ]


class Addresses(HTMLParser):
    """What a page of the site links to, shows or loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        loads = values.get("src") if tag != "link" or values.get("rel") == "canonical" else values.get("href")
        if loads:
            self.loaded.append(loads)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, from a copy of its sources."""
    for module in ("zensical", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: it comes with the extra [docs]")
    copy = tmp_path_factory.mktemp("site")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "zensical.toml", copy)
    program = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(program, cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return copy / "build" / "site"


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path: Addresses(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > len(PAGES) - 2
    for path, page in pages.items():
        for address in page.links + page.loaded:
            if re.match(r"https?:|mailto:|data:|javascript:", address):
                assert address not in page.loaded, f"{path.name} loads {address}"
                continue
            if path.name == "404.html":
                continue
            file, anchor = urldefrag(address)
            to = (path.parent / unquote(file)).resolve() if file else path
            assert to.exists(), f"{path.name}: {address}"
            if anchor and to in pages:
                assert unquote(anchor) in pages[to].anchors, f"{path.name}: {address}"


@pytest.mark.slow
def test_the_site_is_searched_from_the_disk_and_fits_a_phone(site: Path) -> None:
    """In a real browser, over file://, where no worker can be started and nothing can be fetched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser: {CHROMIUM} does not exist")
    outside: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: outside.append(request.url))
        for seconds in (1, 10, 60):  # nothing says when the page listens to the keyboard
            page.goto((site / "index.html").as_uri())
            page.wait_for_timeout(1000 * seconds)
            page.keyboard.press("Control+k")
            page.keyboard.type("activation checkpointing", delay=50)
            try:
                page.get_by_text("Less memory: activation checkpointing").first.wait_for(
                    timeout=1e4 * seconds
                )
                break
            except playwright.TimeoutError:
                if seconds == 60:
                    raise
        phone = browser.new_page(viewport={"width": 390, "height": 844})
        for html in sorted(site.glob("*.html")):
            phone.goto(html.as_uri())
            assert phone.evaluate("document.documentElement.scrollWidth") <= 390, html.name
        browser.close()
    assert not [url for url in outside if not url.startswith(("file:", "data:", "blob:"))]
