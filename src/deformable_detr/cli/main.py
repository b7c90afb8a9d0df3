"""The command line: one parser per command, each command one call that Python users can make too.

Exit codes: 0 done; 2 the input is wrong (one sentence on stderr); 1 anything else; 130 stopped by Ctrl-C.
`--debug` puts the traceback before the sentence.
Nothing heavy is imported before a command is known: `--help` answers at once.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import SUPPRESS, ArgumentParser, Namespace

from ..errors import UserError
from ..system.allocator import keep_large_buffers

if TYPE_CHECKING:
    from rich.progress import TaskID

PROGRAM = "deformable-detr"


@dataclass(frozen=True)
class Command:
    """`build` makes the parser (it may look at the arguments: recipes supply defaults); `run` does the work
    and returns the exit code. `keeps_buffers`: see allocator.py; a benchmark's process measures peers too,
    and decides for itself."""

    summary: str
    build: Callable[[Sequence[str]], ArgumentParser]
    run: Callable[[ArgumentParser, Namespace], int]
    keeps_buffers: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == "--version":
        from .. import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        return _refuse(f"there is no command {argv[0]}: choose one of {', '.join(COMMANDS)}.")
    return execute(command, argv[0], argv[1:])


def execute(command: Command, name: str, arguments: Sequence[str]) -> int:
    """Run `command`, which a person typed as `name`; returns the exit code."""
    if command.keeps_buffers:
        keep_large_buffers()
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    try:
        parser = command.build(rest)
        return command.run(parser, parser.parse_args(rest))
    except (BrokenPipeError, SystemExit):
        raise
    except KeyboardInterrupt:
        return _fail("stopped.", 130)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        if isinstance(error, ArgumentError):
            return _refuse(_parse_error(str(error), name, _options(command, rest)))
        if (code := getattr(error, "exit_code", None)) is not None:  # an exception of errors.py
            return _fail(str(error), code)
        if isinstance(error, _WRONG_PATH) and error.filename is not None:
            return _refuse(f"{error.filename}: {error.strerror}; name another path.")
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


# What the operating system says where a file is to be written and cannot be. (Whatever reads a file of the
# user's looks for it first.)
_WRONG_PATH = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, FileNotFoundError)

# jsonargparse names a positional argument as the namespace does, --help and README in capitals.
_SHOWN_NAMES = {
    "dataset": "DATA",
    "model": "MODEL",
    "sources": "SOURCE",
    "output": "OUT",
    "to": "--to",
    "what": "WHAT",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list, [1,2,…]",
    "NoneType": "null",
}


def _options(command: Command, rest: Sequence[str]) -> list[str]:
    """All that the command knows; none where what was typed does not even let it be built."""
    try:
        actions = command.build(rest)._actions
    except (ArgumentError, UserError):
        return []
    return [option for action in actions for option in action.option_strings]


def _meant(unknown: str, options: Sequence[str]) -> str | None:
    """--train.epochs for --epochs, else the most similar one."""
    fields = [option for option in options if option.endswith(f".{unknown.removeprefix('--')}")]
    return next(iter(fields or difflib.get_close_matches(unknown, options, n=1)), None)


def _parse_error(message: str, command: str, options: Sequence[str] = ()) -> str:
    """jsonargparse's message as one sentence that says what the person typed. `options`: to choose one from
    that was meant."""
    text = " ".join(message.split()).rstrip(".")
    unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", text, re.IGNORECASE)
    if unknown is not None and (meant := _meant(unknown[1], options)) is not None:
        text += f"; did you mean {meant}?"
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    text = re.sub(r'^Parser key "([\w.]+)":', lambda match: f"--{_as_typed(match[1])}:", text)
    text = re.sub(
        r"Expected a (\w+(?:\[.*?\])?)\. Got value: (.*)$",
        lambda match: f"must be {_in_words(match[1])}, not {match[2]}",
        text,
    )
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.+?)\] .* Given value: (.*)$",
        lambda match: f"must be {' or '.join(map(_in_words, match[1].split(', ')))}, not {match[2]}",
        text,
    )
    text = text.replace(": must be", " must be")
    head, found, names = text.partition("arguments are required: ")
    if found:
        text = head + found + ", ".join(_SHOWN_NAMES.get(name, name) for name in names.split(", "))
    return f"{text} (`{PROGRAM} {command} --help` tells the options)."


def _in_words(kind: str) -> str:
    if kind.startswith("Literal["):
        choices = kind.removeprefix("Literal[").removesuffix("]").replace("'", "")
        return f"one of {choices}"
    return _KINDS.get(kind, kind)


def _as_typed(key: str) -> str:
    """Fields of a configuration keep their underscores, options have dashes."""
    return key if "." in key else key.replace("_", "-")


def _refuse(sentence: str) -> int:
    return _fail(sentence, 2)


def _fail(sentence: str, code: int) -> int:
    print(f"{PROGRAM}: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND …          (COMMAND --help tells its options)",
            "",
            *lines,
            "",
            "MODEL: a run or checkpoint folder, an authors' .pth file, a transformers folder",
            "or hub id, or demo, which comes along; to evaluate, predict and serve also an",
            "exported .onnx, .xml or .pt2.",
            "DATA: a folder in COCO, Pascal VOC or YOLO layout, found out by itself.",
            "--debug (any command) shows the traceback of an error.",
        ]
    )


def _parser(name: str, description: str, usage: str | None = None) -> ArgumentParser:
    return ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=description,
        usage=usage,
        default_env=False,
        exit_on_error=False,
        # `--rec` would be taken for --recipe, but too late for it to supply the defaults.
        allow_abbrev=False,
    )


# ---------------------------------------------------------------------- train

# These decide what the defaults of all other options are, so they are read first.
ORIGIN_OPTIONS = ("--recipe", "--config", "--init-from", "--output")


def _add_origin(parser: ArgumentParser) -> None:
    parser.add_argument("--recipe", type=str | None, default=None, help="name of a recipe (see README)")
    parser.add_argument("--config", type=str | None, default=None, help="YAML file: recipe < config < flags")
    parser.add_argument(
        "--init-from", type=str | None, default=None, help="MODEL to start from; its classes may differ"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output, exactly")
    parser.add_argument("--output", type=str, default="runs/train", help="the run folder")


def _origin(argv: Sequence[str], *options: str) -> Namespace:
    """What `argv` says of `options`, of all origins if none are given."""
    chosen: list[str] = []
    for index, argument in enumerate(argv):
        option = argument.split("=", 1)[0]
        if option not in (options or (*ORIGIN_OPTIONS, "--resume")):
            continue
        chosen += [argument] if "=" in argument or option == "--resume" else argv[index : index + 2]
    parser = _parser("train", "")
    _add_origin(parser)
    return parser.parse_args(chosen)


def _build_train(argv: Sequence[str]) -> ArgumentParser:
    from ..config import RECIPES, DataConfig, ModelConfig, TrainConfig, recipe, to_dict

    parser = _parser(
        "train",
        f"Train a detector on DATA. Recipes: {', '.join(RECIPES)}. Under torchrun: in several processes.",
        usage=f"{PROGRAM} train DATA [--recipe R] [--output FOLDER] [options]",
    )
    parser.add_argument("dataset", metavar="DATA", type=str, help="folder in COCO, Pascal VOC or YOLO layout")
    _add_origin(parser)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--format", type=Literal["coco", "voc", "yolo"] | None, default=None, help="short for --data.format"
    )
    parser.add_argument("--strict", action="store_true", help="short for --data.strict=true")
    for name, config in (("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig)):
        parser.add_class_arguments(config, name)
    asked_for_help = "-h" in argv or "--help" in argv
    origin = _origin(argv, "--recipe") if asked_for_help else _origin(argv)
    if asked_for_help:
        base = recipe(origin.recipe or "deformable_detr_r50")
    else:
        from ..training import resolve_config

        base = resolve_config(
            origin.recipe,
            origin.output,
            config=origin.config,
            init_from=origin.init_from,
            resume=origin.resume,
        )
    parser.add_argument("--base-recipe", type=str, default=base.recipe, help=SUPPRESS)
    parser.set_defaults(
        {"model": to_dict(base.model), "data": to_dict(base.data), "train": to_dict(base.train)}
    )
    return parser


def _run_train(parser: ArgumentParser, arguments: Namespace) -> int:
    from ..config import RunConfig
    from ..training import train

    made = parser.instantiate(arguments)
    data = replace(
        made.data,
        format=arguments.format or made.data.format,
        strict=arguments.strict or made.data.strict,
    )
    train(
        arguments.dataset,
        RunConfig(recipe=arguments.base_recipe, model=made.model, data=data, train=made.train),
        arguments.output,
        init_from=arguments.init_from,
        resume=arguments.resume,
        device=arguments.device,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process comes by here
        print(f"checkpoints and metrics are in {arguments.output}")
    return 0


# ---------------------------------------------------------------------- evaluate, predict


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=str, help="run or checkpoint folder, .pth file, hub id, demo, …"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, …")


def _add_tta(parser: ArgumentParser) -> None:
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: flips and three scales")
    parser.add_argument(
        "--tta-scales", type=list[float] | None, default=None, help="the same with these, as in [0.8,1,1.2]"
    )


def _tta(arguments: Namespace) -> bool | Sequence[float]:
    result: bool | Sequence[float] = arguments.tta_scales or arguments.tta
    return result


def _build_evaluate(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser("evaluate", "Average precision of MODEL on a split of DATA.")
    _add_model(parser)
    parser.add_argument("dataset", metavar="DATA", type=str, help="folder in COCO, Pascal VOC or YOLO layout")
    parser.add_argument("--split", type=str, default="val")
    parser.add_argument("--format", type=Literal["auto", "coco", "voc", "yolo"], default="auto")
    parser.add_argument("--strict", action="store_true", help="refuse data with problems")
    parser.add_argument("--output", type=str | None, default=None, help="write metrics.json here")
    parser.add_argument("--metric", type=Literal["coco", "voc"], default="coco")
    parser.add_argument(
        "--batching",
        type=Literal["exact", "padded"],
        default="exact",
        help="exact: only images of equal size share a batch; padded: as the authors do",
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-detections", type=int, default=100)
    parser.add_argument("--iou-threshold", type=float, default=0.5, help="voc")
    parser.add_argument(
        "--interpolation", type=Literal["every_point", "11_point"], default="every_point", help="voc"
    )
    parser.add_argument("--plus-one", type=bool, default=False, help="voc: widths count the last pixel")
    _add_tta(parser)
    return parser


def _run_evaluate(parser: ArgumentParser, arguments: Namespace) -> int:
    from rich.console import Console

    from ..evaluation import evaluate, print_metrics

    console = Console()
    metrics = evaluate(
        arguments.model,
        arguments.dataset,
        split=arguments.split,
        format=arguments.format,
        strict=arguments.strict,
        metric=arguments.metric,
        batching=arguments.batching,
        batch_size=arguments.batch_size,
        max_detections=arguments.max_detections,
        output=arguments.output,
        device=arguments.device,
        iou_threshold=arguments.iou_threshold,
        interpolation=arguments.interpolation,
        plus_one=arguments.plus_one,
        tta=_tta(arguments),
        console=console,
    )
    print_metrics(metrics, console)
    return 0


def _build_predict(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser(
        "predict",
        "Find objects in pictures, videos and cameras: annotated ones, predictions.json and report.json.",
        usage=f"{PROGRAM} predict MODEL SOURCE [SOURCE …] [options]\n"
        f"       {PROGRAM} predict MODEL - [options]     JSON lines, stdin to stdout",
    )
    _add_model(parser)
    parser.add_argument(
        "sources", metavar="SOURCE", type=str, nargs="+", help="images, videos, folders, globs, webcam:0; -"
    )
    parser.add_argument("--output", type=str | None, default=None, help="folder to write to, predictions")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score")
    parser.add_argument(
        "--class-thresholds", metavar="CAR=0.3,…", type=str | None, default=None, help="where it differs"
    )
    parser.add_argument(
        "--classes", metavar="CAR,BUS,…", type=str | None, default=None, help="find only these"
    )
    parser.add_argument("--tile", action="store_true", help="look in tiles: small objects in large pictures")
    parser.add_argument(
        "--tile-size", type=int | None, default=None, help="pixels, if not those that the model sees"
    )
    parser.add_argument("--tile-overlap", type=float, default=0.2, help="of neighbouring tiles, as a share")
    _add_tta(parser)
    parser.add_argument("--no-track", action="store_true", help="videos: do not number the objects")
    parser.add_argument("--every", type=int, default=1, help="videos: look at each n-th frame")
    parser.add_argument("--max-detections", type=int, default=100, help="per picture, frame or tile")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", type=Literal["fp32", "bf16", "fp16"], default="fp32")
    return parser


def _run_predict(parser: ArgumentParser, arguments: Namespace) -> int:
    from ..prediction import Tiling

    tiled = arguments.tile or arguments.tile_size is not None
    wanted = {
        "threshold": arguments.threshold,
        "classes": None if arguments.classes is None else _listed(arguments.classes),
        "class_thresholds": _class_thresholds(arguments.class_thresholds),
        "tiling": Tiling(arguments.tile_size, arguments.tile_overlap) if tiled else None,
        "max_detections": arguments.max_detections,
    }
    if "-" not in arguments.sources:
        return _predict_files(arguments, wanted)
    if len(arguments.sources) > 1 or arguments.output is not None:
        raise UserError("the source - goes alone and without --output: it answers on stdout.")
    return _predict_lines(arguments, wanted)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _predict_files(arguments: Namespace, wanted: dict[str, Any]) -> int:
    from ..errors import PredictionInterrupted
    from ..prediction import predict

    try:
        with _progress_bar() as progress:
            report = predict(
                arguments.model,
                arguments.sources,
                arguments.output or "predictions",
                **wanted,
                track=not arguments.no_track,
                every=arguments.every,
                batch_size=arguments.batch_size,
                device=arguments.device,
                dtype=arguments.dtype,
                tta=_tta(arguments),
                progress=progress,
            )
    except PredictionInterrupted as interruption:
        report = interruption.report
    seen = [_counted(len(report.images), "picture")] if report.images or not report.videos else []
    seen += [f"{_counted(video.frames, 'frame')} of {video.source}" for video in report.videos]
    folder, found = report.predictions.parent, _counted(report.detections, "detection")
    print(f"{found} in {', '.join(seen)}: {folder}, {report.predictions}")
    if not report.detections:
        print(f"Nothing reached the threshold of {arguments.threshold:g}: --threshold lowers it.")
    for video in report.videos:
        if video.broken_packets:
            print(f"{video.source}: {video.broken_packets} broken parts passed over", file=sys.stderr)
    for left_out in report.left_out:
        print(f"left out {left_out}: it holds results of predict", file=sys.stderr)
    for source, reason in report.skipped:
        print(f"skipped {source}: {reason}", file=sys.stderr)
    if report.skipped:
        total = len(report.skipped) + len(report.images) + len(report.videos)
        print(
            f"warning: {len(report.skipped)} of {total} inputs skipped, see {report.report}", file=sys.stderr
        )
    if report.stopped and not all(source.startswith("webcam:") for source in arguments.sources):
        return _fail("stopped; what was done until then is written.", 130)
    return 0  # Ctrl-C is how one ends a camera


def _predict_lines(arguments: Namespace, wanted: dict[str, Any]) -> int:
    from contextlib import redirect_stdout

    from ..inference.detector import load
    from ..inference.tta import augmented_as_requested
    from ..prediction import answer_lines

    answers = sys.stdout

    def answer(line: str) -> None:
        print(line, file=answers, flush=True)

    try:
        with redirect_stdout(sys.stderr):  # whatever a library prints is no answer
            plain = load(arguments.model, arguments.device, arguments.dtype)
            detector = augmented_as_requested(plain, _tta(arguments))
            report = answer_lines(detector, sys.stdin.buffer, answer, **wanted)
    except BrokenPipeError:  # whoever asked has gone; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())
        return 0
    return 2 if report.failed and not report.answered else 0


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int | None], None] | None]:
    """A bar on stderr where a person looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(os.path.basename(what))
            bar.update(tasks[what], completed=done, total=total)

        yield show


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _class_thresholds(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    thresholds = {}
    for pair in _listed(text):
        name, _, score = pair.rpartition("=")
        try:
            thresholds[name.strip()] = float(score)
        except ValueError:
            name = ""
        if not name:
            raise UserError(f"--class-thresholds must be NAME=SCORE,…, as in car=0.3,bus=0.6, not {pair}.")
    return thresholds


def _build_explain(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser(
        "explain",
        "Where MODEL looked for each detection in IMAGE: a picture, or a page to explore. With --missed: why "
        "objects of DATA were not found.",
        usage=f"{PROGRAM} explain MODEL IMAGE [--output FILE] [options]\n"
        f"       {PROGRAM} explain MODEL [IMAGE] --missed DATA [--output FOLDER]",
    )
    _add_model(parser)
    parser.add_argument("image", metavar="IMAGE", type=str | None, nargs="?", default=None)
    parser.add_argument("--output", type=str | None, default=None, help=".png, .pdf, .svg or .html; a folder")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--layer", type=int | None, default=None, help="decoder layer to draw, the last")
    parser.add_argument("--most", type=int | None, default=None, help="detections (objects) to draw at most")
    parser.add_argument("--at", metavar="X,Y", type=str | None, default=None, help="encoder, from this pixel")
    parser.add_argument("--gradient", action="store_true", help="what x, y, w, h and score depend on")
    parser.add_argument(
        "--missed", metavar="DATA", type=str | None, default=None, help="why objects were not found"
    )
    parser.add_argument("--split", type=str, default="val", help="of DATA")
    parser.add_argument("--format", type=Literal["auto", "coco", "voc", "yolo"], default="auto")
    return parser


def _run_explain(parser: ArgumentParser, arguments: Namespace) -> int:
    most = {} if arguments.most is None else {"most": arguments.most}
    common = {"threshold": arguments.threshold, "device": arguments.device, **most}
    if arguments.missed is not None:
        _refuse_with("--missed", arguments, "gradient", "at", "layer")
        from rich.console import Console

        from ..explain.commands import print_missed, write_missed

        output = arguments.output or "missed"
        report = write_missed(
            arguments.model,
            arguments.missed,
            output,
            split=arguments.split,
            image=arguments.image,
            format=arguments.format,
            **common,
        )
        print_missed(report, Console())
        print(f"written: {output}")
        return 0
    if arguments.image is None:
        raise UserError("IMAGE is missing: name the picture to explain, or a data set with --missed DATA.")
    from ..explain.commands import write_explanation, write_gradient

    output = arguments.output or "explanation.png"
    if arguments.gradient:
        _refuse_with("--gradient", arguments, "at", "layer")
        found = write_gradient(arguments.model, arguments.image, output, **common)
    else:
        found = write_explanation(
            arguments.model,
            arguments.image,
            output,
            layer=arguments.layer,
            at=() if arguments.at is None else (_place(arguments.at),),
            **common,
        )
    print(f"{_counted(found, 'detection')} explained: {output}")
    return 0


def _refuse_with(option: str, arguments: Namespace, *others: str) -> None:
    for other in others:
        if arguments[other]:
            raise UserError(f"{option} and --{other} do not go together: leave one out.")


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--at must be X,Y in pixels, such as 120,80, not {text}.") from None
    return x, y


# ---------------------------------------------------------------------- report


def _build_report(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser(
        "report",
        "How good MODEL is on a split of DATA, what limits it and how it was trained: one HTML file.",
    )
    _add_model(parser)
    parser.add_argument("dataset", metavar="DATA", type=str, help="folder in COCO, Pascal VOC or YOLO layout")
    parser.add_argument("--split", type=str, default="val")
    parser.add_argument("--format", type=Literal["auto", "coco", "voc", "yolo"], default="auto")
    parser.add_argument(
        "--output", type=str | None, default=None, help="the file; report.html in the run folder by default"
    )
    parser.add_argument(
        "--most-images", type=int, default=24, help="looked at again, to see which stage lost an object"
    )
    return parser


def _run_report(parser: ArgumentParser, arguments: Namespace) -> int:
    from ..report import write_report

    path = write_report(
        arguments.model,
        arguments.dataset,
        arguments.output,
        split=arguments.split,
        format=arguments.format,
        most_images=arguments.most_images,
        device=arguments.device,
    )
    print(f"written: {path}")
    return 0


# ---------------------------------------------------------------------- convert, inspect, demo, doctor


def _build_convert(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser("convert", "Rewrite MODEL in another project's checkpoint format.")
    parser.add_argument("model", metavar="MODEL", type=str)
    parser.add_argument("output", metavar="OUT", type=str, help="folder, or .pth file for authors")
    parser.add_argument("--to", type=Literal["native", "authors", "transformers"], required=True)
    return parser


def _run_convert(parser: ArgumentParser, arguments: Namespace) -> int:
    from ..checkpoint.convert import convert

    print(f"written: {convert(arguments.model, arguments.output, to=arguments.to)}")
    return 0


def _build_export(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser(
        "export",
        "Write MODEL for another engine, once it has been compared with the PyTorch model on pictures.",
    )
    parser.add_argument(
        "model", metavar="MODEL", type=str, help="run or checkpoint folder, .pth file, hub id, demo, …"
    )
    parser.add_argument("--to", type=Literal["onnx", "openvino", "torch"], required=True)
    parser.add_argument("--output", metavar="FILE", type=str, required=True, help=".onnx, .xml or .pt2")
    parser.add_argument(
        "--operator",
        type=Literal["native", "grid_sample", "gather"] | None,
        default=None,
        help="how deformable attention samples; gather: without GridSample; native: torch's default",
    )
    parser.add_argument("--precision", type=Literal["fp32", "int8"], default="fp32")
    parser.add_argument(
        "--calibration", metavar="IMAGES", type=str, nargs="+", default=None, help="for int8: examples"
    )
    parser.add_argument("--images", metavar="IMAGES", type=str, nargs="+", default=None, help="to compare on")
    parser.add_argument("--data", type=str | None, default=None, help="DATA to compare on, with AP")
    parser.add_argument("--split", type=str, default="val", help="of DATA")
    parser.add_argument("--format", type=Literal["auto", "coco", "voc", "yolo"], default="auto")
    parser.add_argument("--num-images", type=int, default=4, help="how many are compared, at most")
    for name, unit in (("box", "part of a side"), ("score", "0 to 1"), ("ap", "0 to 1")):
        parser.add_argument(f"--max-{name}-drift", type=float | None, default=None, help=f"bound, {unit}")
    return parser


def _run_export(parser: ArgumentParser, arguments: Namespace) -> int:
    from rich.console import Console

    from ..exporter import export

    console = Console()
    made = export(
        arguments.model,
        arguments.output,
        to=arguments.to,
        operator=arguments.operator,
        precision=arguments.precision,
        images=arguments.images,
        data=arguments.data,
        split=arguments.split,
        format=arguments.format,
        calibration=arguments.calibration,
        num_images=arguments.num_images,
        max_box_drift=arguments.max_box_drift,
        max_score_drift=arguments.max_score_drift,
        max_ap_drift=arguments.max_ap_drift,
        console=console,
    )
    print(made.summary())
    return 0


def _build_inspect(argv: Sequence[str]) -> ArgumentParser:
    from ..config import RECIPES, DataConfig, ModelConfig, TrainConfig, recipe, to_dict

    usual = "deformable_detr_lite"
    parser = _parser(
        "inspect",
        "What is in DATA, what is broken in it, how the model of a recipe will see it, and what training "
        f"will cost. Recipes: {', '.join(RECIPES)}; their settings as of `train`.",
        usage=f"{PROGRAM} inspect DATA [--recipe R] [--output FILE] [options]",
    )
    parser.add_argument("dataset", metavar="DATA", type=str)
    parser.add_argument("--recipe", type=str | None, default=None, help=f"{usual} if not named")
    parser.add_argument("--config", type=str | None, default=None, help="YAML file: recipe < config < flags")
    parser.add_argument(
        "--format", type=Literal["auto", "coco", "voc", "yolo"] | None, default=None, help="layout of DATA"
    )
    parser.add_argument("--output", type=str | None, default=None, help="write a .json or .html report")
    parser.add_argument("--strict", action="store_true", help="exit with code 2 where there are problems")
    parser.add_argument(
        "--images",
        type=Literal["decode", "headers", "no"],
        default="decode",
        help="what of the image files to look at",
    )
    parser.add_argument("--forecast", action="store_true", help="measure some updates: time and memory")
    parser.add_argument("--device", type=str, default="auto", help="of the forecast: auto, cpu or cuda")
    for name, config in (("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig)):
        parser.add_class_arguments(config, name)
    origin = _origin([] if "-h" in argv or "--help" in argv else argv, "--recipe", "--config")
    if origin.config is None:
        base = recipe(origin.recipe or usual)
    else:
        from ..training import resolve_config

        base = resolve_config(origin.recipe, origin.output, config=origin.config)
    parser.add_argument("--base-recipe", type=str, default=base.recipe, help=SUPPRESS)
    parser.set_defaults(
        {"model": to_dict(base.model), "data": to_dict(base.data), "train": to_dict(base.train)}
    )
    return parser


def _run_inspect(parser: ArgumentParser, arguments: Namespace) -> int:
    from rich.console import Console

    from ..config import RunConfig
    from ..inspection import (
        check_output,
        inspect,
        print_forecast,
        print_report,
        write_inspection,
    )

    made = parser.instantiate(arguments)
    config = RunConfig(recipe=arguments.base_recipe, model=made.model, data=made.data, train=made.train)
    if arguments.output is not None:
        check_output(arguments.output)
    format = arguments.format or made.data.format
    console = Console()
    report = inspect(arguments.dataset, config, format=format, images=arguments.images, console=console)
    print_report(report, console)
    if arguments.output is not None:  # before the forecast, which may fail where the rest did not
        write_inspection(report, arguments.output)
    if arguments.forecast:
        from ..training.forecast import forecast

        expected = forecast(arguments.dataset, config, format=format, device=arguments.device)
        report = replace(report, forecast=expected)
        print_forecast(report, console)
        if arguments.output is not None:
            write_inspection(report, arguments.output)
    if arguments.output is not None:
        print(f"written: {arguments.output}")
    if report.unusable:
        names = ", ".join(problem.where for problem in report.unusable)
        raise UserError(f"{arguments.dataset}: {names} cannot be used, for the reason above.")
    if (arguments.strict or made.data.strict) and report.problem_count:
        problems = report.problem_count
        raise UserError(f"--strict: {arguments.dataset} has {problems} problems, listed above: mend them.")
    return 0


def _build_demo(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser("demo", "Data, training, evaluation, prediction: offline, a few minutes on two cores.")
    parser.add_argument("--output", type=str, default="demo_output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int | None, default=None, help="fewer for a quick look")
    return parser


def _run_demo(parser: ArgumentParser, arguments: Namespace) -> int:
    from .demo import demo

    demo(arguments.output, seed=arguments.seed, epochs=arguments.epochs)
    return 0


def _build_serve(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser("serve", "MODEL behind HTTP, with a page to try it (needs the extra `serve`).")
    _add_model(parser)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="0.0.0.0: for other machines too")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--dtype", type=Literal["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--token-file", type=str | None, default=None, help="or DEFORMABLE_DETR_TOKEN")
    parser.add_argument("--root-path", type=str, default="", help="the prefix that a reverse proxy takes off")
    parser.add_argument("--max-batch", type=int, default=4, help="pictures computed together")
    parser.add_argument("--batch-wait-ms", type=float, default=5.0, help="for others to share a batch")
    parser.add_argument("--queue-size", type=int, default=128, help="pictures; more are refused (429)")
    parser.add_argument("--max-pictures", type=int, default=16, help="of a request")
    parser.add_argument("--max-body-mb", type=int, default=32, help="of a request")
    parser.add_argument("--max-pixels", type=int, default=40_000_000, help="of a picture")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for an answer (504)")
    parser.add_argument("--access-log", action="store_true", help="a line for each request")
    return parser


def _run_serve(parser: ArgumentParser, arguments: Namespace) -> int:
    from ..serve import ServeSettings, serve

    body = arguments.max_body_mb * 1024**2
    serve(
        arguments.model,
        arguments.host,
        arguments.port,
        ServeSettings(
            max_batch=arguments.max_batch,
            batch_wait_ms=arguments.batch_wait_ms,
            queue_size=arguments.queue_size,
            max_pictures=arguments.max_pictures,
            max_body_bytes=body,
            max_bytes_in_flight=max(body, ServeSettings.max_bytes_in_flight),
            max_pixels=arguments.max_pixels,
            timeout_s=arguments.timeout,
        ),
        token_file=arguments.token_file,
        root_path=arguments.root_path,
        access_log=arguments.access_log,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    return 0


def _build_doctor(argv: Sequence[str]) -> ArgumentParser:
    return _parser("doctor", "Versions, devices, kernels in use, and a self-test of the operator.")


def _run_doctor(parser: ArgumentParser, arguments: Namespace) -> int:
    from ..system.doctor import diagnose

    diagnosis = diagnose()
    width = max(len(name) for name in (*diagnosis.facts, *diagnosis.tests))
    for name, fact in diagnosis.facts.items():
        print(f"{name:<{width}}  {fact}")
    for name, error in diagnosis.tests.items():
        print(f"{name:<{width}}  largest error against a direct computation {error:.1e}")
    print("healthy" if diagnosis.healthy else "NOT healthy: the operator computes wrong results here")
    return 0 if diagnosis.healthy else 1


COMMANDS: dict[str, Command] = {
    "train": Command("train a detector on DATA", _build_train, _run_train),
    "evaluate": Command("average precision of MODEL on DATA", _build_evaluate, _run_evaluate),
    "predict": Command(
        "find objects in pictures and videos, draw and list them", _build_predict, _run_predict
    ),
    "explain": Command("where the model looked, and why objects were missed", _build_explain, _run_explain),
    "report": Command("how good MODEL is and what limits it, as a page", _build_report, _run_report),
    "inspect": Command("what is in DATA, and what is broken in it", _build_inspect, _run_inspect),
    "convert": Command(
        "rewrite MODEL as native, authors' or transformers' checkpoint", _build_convert, _run_convert
    ),
    "export": Command("write MODEL for ONNX, OpenVINO or torch.export, checked", _build_export, _run_export),
    "demo": Command("the whole way offline, in a few minutes", _build_demo, _run_demo),
    "serve": Command("MODEL behind HTTP, with a page to try it", _build_serve, _run_serve),
    "doctor": Command("versions, devices, kernels, self-test", _build_doctor, _run_doctor),
}
