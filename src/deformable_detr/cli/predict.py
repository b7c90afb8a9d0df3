"""The commands `deformable-detr predict MODEL SOURCE …` and, for JSON lines, `predict MODEL -`."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from typing import Any, Literal

from ..errors import PredictionInterrupted, UserError
from .messages import fail, refuse
from .options import (
    Parser,
    add_dtype,
    add_max_pixels,
    add_model,
    add_output,
    add_threshold,
    add_tta,
    listed,
    without_tta,
)

SUMMARY = "find objects in pictures and videos, draw and list them"
TABLE_OPTIONS = ("engine", "workers", "threads", "shard_size", "gpus_per_worker", "ray_address")
ENGINE_OPTIONS = {  # options, and the fields of `bulk.Engine` that they set
    "engine": "name",
    "workers": "workers",
    "gpus_per_worker": "gpus_per_worker",
    "ray_address": "ray_address",
}


def add_arguments(parser: Parser) -> None:
    parser.usage = (
        f"{parser.prog} MODEL SOURCE [SOURCE …] [options]\n"
        f"       {parser.prog} MODEL - [options]     JSON lines, stdin to stdout"
    )
    parser.description = (
        "Find objects in pictures, videos and cameras, and write annotated copies, predictions.json and "
        "report.json. For many pictures, --format parquet writes tables instead (docs/scale.md)."
    )
    add_model(parser)
    parser.argument(
        "sources",
        "SOURCE",
        "Images, videos, folders, globs, webcam:0, or - for JSON lines. For tables also URLs and lists.",
        many=True,
    )
    add_output(parser, None, "The folder to write to. Default: predictions.", shown="FOLDER")
    add_threshold(parser)
    parser.option(
        "--class-thresholds",
        str,
        None,
        "The minimum scores of classes that differ from --threshold.",
        shown="CAR=0.3,…",
        read=_class_thresholds,
    )
    parser.option(
        "--classes",
        str,
        None,
        "Find only these classes. Names may contain commas.",
        shown="CAR,BUS,…",
        read=listed,
    )
    parser.flag("--tile", "Process pictures in tiles, to find small objects in large pictures.")
    parser.option(
        "--tile-size",
        int | None,
        None,
        "The side of a tile in pixels; turns --tile on. Default: the model's image size.",
    )
    parser.option(
        "--tile-overlap",
        float | None,
        None,
        "The overlap of neighbouring tiles, as a share of a tile; turns --tile on.",
        default_shown="0.2",
    )
    add_tta(parser)
    parser.flag("--no-track", "Do not number the objects of videos.")
    parser.option("--every", int, 1, "In videos, process only every n-th frame.")
    parser.option(
        "--max-detections",
        int | None,
        None,
        "The maximum number of detections per picture, frame or tile.",
        default_shown="100, or the queries of the model if it has more",
    )
    parser.option("--batch-size", int, 4, "The number of pictures or frames that are computed together.")
    add_dtype(parser)
    add_max_pixels(parser)
    parser.option(
        "--format", Literal["drawings", "parquet"], "drawings", "Annotated copies, or tables of detections."
    )
    _add_tables(parser)


def _add_tables(parser: Parser) -> None:
    group = "with --format parquet"
    parser.option(
        "--engine",
        Literal["local", "ray"] | None,
        None,
        "Where to compute: on this machine, or on a Ray cluster.",
        shown="local|ray",
        group=group,
        default_shown="local",
    )
    for name, kind, default, help in (
        ("--workers", int, "1", "The number of processes, each with a model."),
        ("--threads", int, "1", "The threads of each worker; sums of floats depend on it."),
        ("--shard-size", int, "500", "The number of pictures in each file of the result."),
        ("--gpus-per-worker", float, "0", "The number of GPUs of each Ray worker; it may be a fraction."),
    ):
        parser.option(name, kind | None, None, help, group=group, default_shown=default)
    parser.option(
        "--ray-address",
        str | None,
        None,
        "A running Ray cluster. Default: one is started on this machine.",
        shown="ADDRESS",
        group=group,
    )


def run(arguments: Namespace) -> int:
    options = without_tta(arguments)
    tables = {name: options.pop(name) for name in TABLE_OPTIONS}
    if options.pop("format") == "parquet":
        return _predict_tables(tables, **_with_tiling(options))
    for name, value in tables.items():
        if value is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is for tables: add --format parquet, or leave it out."
            )
    options = _with_tiling(options)
    if "-" not in arguments.sources:
        return _predict_files(**options)
    if len(arguments.sources) > 1 or arguments.output is not None:
        raise UserError("the source - must be the only one, without --output: the answers go to stdout.")
    return _predict_lines(**options)


def _with_tiling(options: dict[str, Any]) -> dict[str, Any]:
    from ..prediction import Tiling

    tile, given = options.pop("tile"), {name: options.pop(f"tile_{name}") for name in ("size", "overlap")}
    given = {name: value for name, value in given.items() if value is not None}
    return {**options, "tiling": Tiling(**given) if tile or given else None}


def _predict_tables(
    tables: dict[str, Any], no_track: bool, every: int, output: str | None, **options: Any
) -> int:
    if no_track or every != 1:
        raise UserError("--no-track and --every are for videos: leave them out with --format parquet.")
    if "-" in options["sources"]:
        raise UserError("the source - is for JSON lines: leave out --format parquet.")
    from ..bulk import Engine, predict_tables, print_report, tables_progress

    chosen = {name: value for name, value in tables.items() if value is not None}
    engine = {to: chosen.pop(name) for name, to in ENGINE_OPTIONS.items() if name in chosen}
    try:
        with tables_progress() as progress:
            report = predict_tables(
                **options,
                **chosen,
                output=output or "predictions",
                engine=Engine(**engine),
                progress=progress,
            )
    except KeyboardInterrupt:
        return fail("stopped; the finished parts are written, and the same command continues.", 130)
    print_report(report)
    unread = report.counts.errors == report.counts.pictures
    return refuse("no picture could be read; the column error states why.") if unread else 0


def _predict_files(no_track: bool, output: str | None, **options: Any) -> int:
    from ..prediction import predict, print_report, terminal_progress

    try:
        with terminal_progress() as progress:
            report = predict(**options, output=output or "predictions", track=not no_track, progress=progress)
    except PredictionInterrupted as interruption:
        report = interruption.report
    print_report(report)
    if report.stopped and not all(source.startswith("webcam:") for source in options["sources"]):
        return fail("stopped; what was done until then is written.", PredictionInterrupted.exit_code)
    return 0  # Ctrl-C is the usual way to stop a camera


def _predict_lines(model: str, device: str, dtype: str, tta: Any, **options: Any) -> int:
    from ..prediction import answer_stdin

    for name in ("sources", "output", "no_track", "every", "batch_size"):  # these options apply only to files
        del options[name]
    report = answer_stdin(model, device=device, dtype=dtype, tta=tta, **options)
    return 2 if report.failed and not report.answered else 0


def _class_thresholds(text: str) -> dict[str, float]:
    thresholds = {}
    begun = ""  # a name may contain commas: bus, coach=0.3
    for part in listed(text):
        pair = f"{begun}, {part}" if begun else part
        name, _, score = pair.rpartition("=")
        if not name:
            begun = pair
            continue
        try:
            thresholds[name.strip()], begun = float(score), ""
        except ValueError:
            begun = pair
    if begun:
        raise ArgumentTypeError(f"must be NAME=SCORE,…, as in car=0.3,bus=0.6, not {begun}")
    return thresholds
