"""A table of the paper, produced by training its rows: NAME.json and NAME.md, with the published numbers.

Parameters and multiply-adds, which cost little, are always included. AP comes from the run folders of the
rows (rows.py); frames per second are measured on request. JSON states AP as fractions, as `metrics.json`
does; the Markdown table states it in percent, as papers do.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from deformable_detr.cli.options import Parser, add_device
from deformable_detr.data.formats import read_split
from deformable_detr.data.images import open_image
from deformable_detr.data.records import Split
from deformable_detr.errors import UserError
from deformable_detr.files import write_json, write_text
from deformable_detr.system.environment import environment
from experiments.commands import add_output

from .flops import typical_sizes
from .rows import (
    AP_NAMES,
    Row,
    RunResult,
    Scale,
    find_runs,
    require_data,
    run_folder,
)

SPEED_BATCHES = (1, 4)
# Passes: the authors' numbers on a GPU, and as many as are practical on a CPU
WARM_UP = {"cpu": 1, "cuda": 5}
TIMED = {"cpu": 3, "cuda": 300}


@dataclass(frozen=True)
class Column:
    """One column: `key` is its name in the JSON row and in `Published`; `scale` converts JSON's unit to the
    paper's."""

    heading: str
    key: str
    scale: float
    digits: int


AP_COLUMNS = tuple(Column(name, name, 100, 1) for name in AP_NAMES)
COST_COLUMNS = (Column("parameters (M)", "parameters", 1e-6, 1), Column("FLOPs (G)", "gflops", 1, 1))
TIME_COLUMNS = (
    Column("training (h of all GPUs)", "training_hours", 1, 1),
    *(Column(f"fps, batch {batch}", f"fps_batch{batch}", 1, 1) for batch in SPEED_BATCHES),
)
# JSON keys whose fields in `Published` have another name.
PUBLISHED_KEYS = {"training_hours": "gpu_hours"}


@dataclass(frozen=True)
class Options:
    """The options of a table; see `add_table_arguments`."""

    data: Path
    output: Path
    scale: Scale
    rows: tuple[str, ...]
    epochs: int | None
    seeds: tuple[int, ...]
    train: bool
    speed: bool
    device: str


def add_table_arguments(parser: Parser, rows: Sequence[Row]) -> None:
    parser.argument("dataset", "DATA", "A data set with splits train and val.")
    add_output(parser, "run folders, JSON and Markdown")
    parser.option(
        "--scale",
        Literal["full", "small"],
        "full",
        "full: as published, on GPUs; small: for two CPU cores, see docs/paper.md.",
    )
    parser.option(
        "--rows",
        str,
        None,
        f"Rows of {', '.join(row.name for row in rows)}. Default: all.",
        shown="ROW",
        many=True,
    )
    parser.option("--epochs", int | None, None, "Another number of epochs; 0 trains nothing and shows costs.")
    parser.option("--seeds", int, [42], "Seeds of the trainings, one run for each.", shown="N", many=True)
    parser.flag("--rebuild", "Train nothing and read the run folders.")
    parser.flag("--speed", "Also measure frames per second on this machine.")
    add_device(parser)


def options_of(arguments: Namespace) -> Options:
    epochs = arguments.epochs
    if epochs is not None and epochs < 0:
        raise UserError(f"--epochs must not be negative ({epochs}).")
    return Options(
        data=Path(arguments.dataset),
        output=Path(arguments.output),
        scale=arguments.scale,
        rows=tuple(arguments.rows or ()),
        epochs=epochs,
        seeds=tuple(arguments.seeds),
        train=not arguments.rebuild and epochs != 0,
        speed=arguments.speed,
        device=arguments.device,
    )


def make_table(
    name: str, title: str, rows: Sequence[Row], columns: Sequence[Column], options: Options
) -> list[dict[str, Any]]:
    """Train the missing runs, write OUTPUT/NAME.json and OUTPUT/NAME.md after each row, and return the rows.

    Raises:
        UserError: if a row is unknown, or the data cannot be read.
    """
    chosen = _chosen(rows, options.rows)
    split = read_split(options.data, "val")
    console = Console()
    entries = [_entry(row, split, options) for row in chosen]
    _write(name, title, entries, columns, options)
    for index, row in enumerate(chosen):
        if options.train:
            _train(row, split, options, console)
        if options.speed:
            _measure_speed(row, split, options)
        entries[index] = {**entries[index], **_results(row, split, options)}
        _write(name, title, entries, columns, options)
    console.print(markdown(entries, columns), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {options.output / name}.json and .md", highlight=False, soft_wrap=True)
    return entries


def _chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    known = {row.name: row for row in rows}
    for name in names:
        if name not in known:
            raise UserError(f"--rows: there is no row {name}: choose among {', '.join(known)}.")
    return [row for row in rows if not names or row.name in names]


def _runs(row: Row, split: Split, epochs: int, options: Options) -> list[RunResult]:
    runs = find_runs(options.output, options.scale, row.run_name, epochs)
    for run in runs:
        require_data(run, split)
    return runs


def _train(row: Row, split: Split, options: Options, console: Console) -> None:
    for seed in options.seeds:
        config = row.config(options.scale, options.epochs, seed)
        folder = run_folder(options.output, options.scale, row.run_name, config.train.epochs, seed)
        done = _runs(row, split, config.train.epochs, options)
        if any(run.seed == seed and run.finished for run in done):
            console.print(f"{row.name}, seed {seed}: finished before", highlight=False)
            continue
        console.print(f"{row.name}, seed {seed}: {folder}", highlight=False, soft_wrap=True)
        row.train(options.data, config, folder, options.device)


def _entry(row: Row, split: Split, options: Options) -> dict[str, Any]:
    """Return a row's JSON; numbers that were not measured are None."""
    config = row.config(options.scale, options.epochs, options.seeds[0])
    return {
        "row": row.name,
        "label": row.label,
        "recipe": row.recipe,
        "scale": options.scale,
        "epochs": config.train.epochs,
        "parameters": row.parameters(config),
        "gflops": round(row.multiply_adds(config, typical_sizes(split, config.data)) / 1e9, 2),
        **_results(row, split, options),
        "published_epochs": row.epochs,
        "published": asdict(row.published),
    }


def _results(row: Row, split: Split, options: Options) -> dict[str, Any]:
    epochs = row.config(options.scale, options.epochs, options.seeds[0]).train.epochs
    runs = _runs(row, split, epochs, options)
    finished = [run for run in runs if run.finished and run.epochs > 0]
    result: dict[str, Any] = {}
    for metric in AP_NAMES:
        values = [run.metrics[metric] for run in finished if run.metrics.get(metric, -1) >= 0]
        result[metric] = statistics.fmean(values) if values else None
    aps = [run.metrics["AP"] for run in finished]
    result["AP_spread"] = statistics.stdev(aps) if len(aps) > 1 else None  # over seeds
    result["seeds"] = [run.seed for run in finished]
    result["unfinished"] = {run.seed: run.epochs_done for run in runs if not run.finished}
    result["training_hours"] = statistics.fmean(run.hours for run in finished) if finished else None
    speed = _read_speed(_speed_file(row, options))
    return {**result, **speed}


# ---- Speed -----------------------------------------------------------------------------------------


def _speed_file(row: Row, options: Options) -> Path:
    return options.output / "speed" / options.scale / f"{row.name}.json"


def _read_speed(path: Path) -> dict[str, Any]:
    empty = {f"fps_batch{batch}": None for batch in SPEED_BATCHES} | {"speed_on": None}
    if not path.is_file():
        return empty
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: content[name] for name in empty}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and measure again, --speed.") from error


def _measure_speed(row: Row, split: Split, options: Options) -> None:
    """Measure the frames per second as the authors' benchmark does, and write them to the row's speed file.
    The first picture is repeated to form a batch; reading and resizing are not timed. The weights are
    untrained, which affects only Faster R-CNN's NMS."""
    detector = row.untrained(
        row.config(options.scale, options.epochs, options.seeds[0]), split.classes, options.device
    )
    record = split.images[0]
    pixels = detector.preprocess(open_image(record.path, max_pixels=detector.data.max_pixels).picture)
    device = next(detector.model.parameters()).device
    speed: dict[str, Any] = {"speed_on": environment(device)["device"]}
    for batch in SPEED_BATCHES:
        seconds = _seconds(partial(detector.detect, [pixels] * batch, [record.size] * batch), device.type)
        speed[f"fps_batch{batch}"] = round(batch / seconds, 3)
    write_json(_speed_file(row, options), speed)


def _seconds(computation: Callable[[], Any], device: str) -> float:
    """Return the mean time of a call. Detections are copied to the CPU, so the GPU's work is included."""
    for _ in range(WARM_UP[device]):
        computation()
    start = time.perf_counter()
    for _ in range(TIMED[device]):
        computation()
    return (time.perf_counter() - start) / TIMED[device]


# ---- Output ----------------------------------------------------------------------------------------


def _write(
    name: str, title: str, entries: Sequence[Mapping[str, Any]], columns: Sequence[Column], options: Options
) -> None:
    content = {
        "title": title,
        "units": "AP: fraction, parameters: number, gflops: billions of multiply-adds (half of what "
        "FlopCounterMode counts), training_hours: of all processes (GPUs) together; published: AP in "
        "percent, parameters in millions",
        "command": _command(name, options),
        "environment": environment("cpu"),
        "data": str(options.data),
        "scale": options.scale,
        "rows": list(entries),
    }
    write_json(options.output / f"{name}.json", content)
    text = f"# {title}\n\nMeasured / published. FLOPs are multiply-adds.\n\n{markdown(entries, columns)}\n"
    write_text(options.output / f"{name}.md", text)


def _command(name: str, options: Options) -> str:
    """Return the command that produces the table again."""
    words = ["python", "-m", "experiments.paper", name, str(options.data), "--output", str(options.output)]
    words += ["--scale", options.scale]
    if options.rows:
        words += ["--rows", *options.rows]
    if options.epochs is not None:
        words += ["--epochs", str(options.epochs)]
    words += ["--seeds", *map(str, options.seeds)]
    if not options.train and options.epochs != 0:
        words.append("--rebuild")
    if options.speed:
        words.append("--speed")
    return shlex.join(words)


def markdown(entries: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Return the table with `measured / published` in each cell; `-` stands for a missing number."""
    lines = [
        "| | epochs | " + " | ".join(column.heading for column in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for entry in entries:
        cells = [_cell(entry, column) for column in columns]
        epochs = f"{entry['epochs']} / {entry['published_epochs']}"
        lines.append(f"| {entry['label']} | {epochs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any], column: Column) -> str:
    measured = entry[column.key]
    here = "-" if measured is None else f"{measured * column.scale:.{column.digits}f}"
    if column.key == "AP" and entry["AP_spread"] is not None:
        here += f" ± {entry['AP_spread'] * column.scale:.{column.digits}f}"
    published = entry["published"][PUBLISHED_KEYS.get(column.key, column.key)]
    return f"{here} / {'-' if published is None else f'{published:g}'}"
