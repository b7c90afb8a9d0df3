"""The command line: one parser per command, each command one call that Python users can make too.

Exit codes: 0 done; 2 the input is wrong (one sentence on stderr); 1 anything else; 130 stopped by Ctrl-C.
`--debug` puts the traceback before the sentence.
Nothing heavy is imported before a command is known: `--help` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Literal

from jsonargparse import SUPPRESS, ArgumentParser, Namespace

from .allocator import keep_large_buffers
from .errors import UserError

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
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from . import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        return _refuse(f"there is no command {argv[0]}: choose one of {', '.join(COMMANDS)}.")
    if command.keeps_buffers:
        keep_large_buffers()
    debug = "--debug" in argv
    rest = [argument for argument in argv[1:] if argument != "--debug"]
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
            return _refuse(_parse_error(str(error), argv[0]))
        if isinstance(error, UserError):
            return _refuse(str(error))
        if isinstance(error, _WRONG_PATH) and error.filename is not None:
            return _refuse(f"{error.filename}: {error.strerror}; name another path.")
        if type(error).__name__ == "TrainingInterruptedError":  # named, not imported: its module loads torch
            return _fail(str(error), 130)
        if type(error).__name__ == "ExportRefusedError":
            return _fail(str(error), 1)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


# What the operating system says where a file is to be written and cannot be. A missing file is not among
# them: whatever reads a file of the user's looks for it first.
_WRONG_PATH = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)

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


def _parse_error(message: str, command: str) -> str:
    """jsonargparse's message as one sentence that says what the person typed."""
    text = " ".join(message.split()).rstrip(".")
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
            f"usage: {PROGRAM} COMMAND …          ({PROGRAM} COMMAND --help tells its options)",
            "",
            *lines,
            "",
            "MODEL: a run or checkpoint folder, an authors' .pth file, a transformers folder or hub id;",
            "to evaluate and predict also an exported .onnx, .xml or .pt2.",
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


def _origin(argv: Sequence[str]) -> Namespace:
    chosen: list[str] = []
    for index, argument in enumerate(argv):
        option = argument.split("=", 1)[0]
        if argument == "--resume" or (option in ORIGIN_OPTIONS and "=" in argument):
            chosen.append(argument)
        elif option in ORIGIN_OPTIONS:
            chosen += argv[index : index + 2]
    parser = _parser("train", "")
    _add_origin(parser)
    return parser.parse_args(chosen)


def _build_train(argv: Sequence[str]) -> ArgumentParser:
    from .config import DataConfig, ModelConfig, TrainConfig, to_dict
    from .recipes import RECIPES, recipe

    parser = _parser(
        "train",
        f"Train a detector on DATA. Recipes: {', '.join(RECIPES)}. Under torchrun: in several processes.",
        usage=f"{PROGRAM} train DATA [--recipe R] [--output FOLDER] [options]",
    )
    parser.add_argument("dataset", metavar="DATA", type=str, help="folder in COCO, Pascal VOC or YOLO layout")
    _add_origin(parser)
    parser.add_argument("--device", type=str, default="auto", help="auto or cpu")
    parser.add_argument(
        "--format", type=Literal["coco", "voc", "yolo"] | None, default=None, help="short for --data.format"
    )
    parser.add_argument("--strict", action="store_true", help="short for --data.strict=true")
    for name, config in (("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig)):
        parser.add_class_arguments(config, name)
    asked_for_help = "-h" in argv or "--help" in argv
    origin = _origin([] if asked_for_help else argv)
    if asked_for_help and origin.recipe is None:
        base = recipe("deformable_detr_r50")
    else:
        from .training import resolve_config

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
    from .config import RunConfig
    from .training import train

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
        "model", metavar="MODEL", type=str, help="run or checkpoint folder, .pth file, hub id"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, …")


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
    return parser


def _run_evaluate(parser: ArgumentParser, arguments: Namespace) -> int:
    from rich.console import Console

    from .evaluation import evaluate, print_metrics

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
        console=console,
    )
    print_metrics(metrics, console)
    return 0


def _build_predict(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser("predict", "Find objects in pictures: annotated pictures and predictions.json.")
    _add_model(parser)
    parser.add_argument("sources", metavar="SOURCE", type=str, nargs="+", help="images, folders, globs")
    parser.add_argument("--output", type=str, default="predictions", help="folder to write to")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--max-detections", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", type=Literal["fp32", "bf16", "fp16"], default="fp32")
    return parser


def _run_predict(parser: ArgumentParser, arguments: Namespace) -> int:
    from .prediction import predict

    report = predict(
        arguments.model,
        arguments.sources,
        arguments.output,
        threshold=arguments.threshold,
        max_detections=arguments.max_detections,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    print(
        f"{report.detections} detections in {len(report.pictures)} pictures: {arguments.output}, "
        f"{report.predictions}"
    )
    for path, reason in report.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    return 0


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

        from .explain.commands import print_missed, write_missed

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
    from .explain.commands import write_explanation, write_gradient

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
    print(f"{found} detections explained: {output}")
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


# ---------------------------------------------------------------------- convert, inspect, demo, doctor


def _build_convert(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser("convert", "Rewrite MODEL in another project's checkpoint format.")
    parser.add_argument("model", metavar="MODEL", type=str)
    parser.add_argument("output", metavar="OUT", type=str, help="folder, or .pth file for authors")
    parser.add_argument("--to", type=Literal["native", "authors", "transformers"], required=True)
    return parser


def _run_convert(parser: ArgumentParser, arguments: Namespace) -> int:
    from .convert import convert

    print(f"written: {convert(arguments.model, arguments.output, to=arguments.to)}")
    return 0


def _build_export(argv: Sequence[str]) -> ArgumentParser:
    parser = _parser(
        "export",
        "Write MODEL for another engine, once it has been compared with the PyTorch model on pictures.",
    )
    parser.add_argument(
        "model", metavar="MODEL", type=str, help="run or checkpoint folder, .pth file, hub id"
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

    from .exporter import export

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
    parser = _parser("inspect", "What is in DATA, and what is broken in it.")
    parser.add_argument("dataset", metavar="DATA", type=str)
    parser.add_argument("--format", type=Literal["auto", "coco", "voc", "yolo"], default="auto")
    parser.add_argument("--output", type=str | None, default=None, help="write the report as JSON here")
    parser.add_argument("--strict", action="store_true", help="exit with code 2 where there are problems")
    return parser


def _run_inspect(parser: ArgumentParser, arguments: Namespace) -> int:
    import json

    from rich.console import Console

    from .files import write_text
    from .inspection import inspect, print_report

    report = inspect(arguments.dataset, format=arguments.format)
    print_report(report, Console())
    if arguments.output is not None:
        write_text(arguments.output, json.dumps(report.to_dict(), indent=1))
    problems = sum(len(split.problems) for split in report.splits)
    if arguments.strict and problems:
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


def _build_doctor(argv: Sequence[str]) -> ArgumentParser:
    return _parser("doctor", "Versions, devices, kernels in use, and a self-test of the operator.")


def _run_doctor(parser: ArgumentParser, arguments: Namespace) -> int:
    from .doctor import diagnose

    diagnosis = diagnose()
    width = max(len(name) for name in (*diagnosis.facts, *diagnosis.tests))
    for name, fact in diagnosis.facts.items():
        print(f"{name:<{width}}  {fact}")
    for name, error in diagnosis.tests.items():
        print(f"{name:<{width}}  largest error against a direct computation {error:.1e}")
    print("healthy" if diagnosis.healthy else "NOT healthy: the operator computes wrong results here")
    return 0 if diagnosis.healthy else 1


def _build_benchmark(argv: Sequence[str]) -> ArgumentParser:
    from .benchmark import BENCHMARKS

    summary = "Time this package and its peers in one alternating run."
    return _parser_of_choices("benchmark", summary, BENCHMARKS, argv)


def _run_benchmark(parser: ArgumentParser, arguments: Namespace) -> int:
    from .benchmark import BENCHMARKS

    return _run_choice("benchmark", "benchmark", BENCHMARKS, arguments)


def _build_paper(argv: Sequence[str]) -> ArgumentParser:
    from .paper import EXPERIMENTS

    return _parser_of_choices("paper", "The paper's experiments.", EXPERIMENTS, argv)


def _run_paper(parser: ArgumentParser, arguments: Namespace) -> int:
    from .paper import EXPERIMENTS

    return _run_choice("paper", "experiment", EXPERIMENTS, arguments)


def _parser_of_choices(
    command: str, summary: str, choices: Mapping[str, str], argv: Sequence[str]
) -> ArgumentParser:
    """Of a command that is several: `choices` names the modules of its package, with a summary of each."""
    summaries = "; ".join(f"{name}: {each}" for name, each in choices.items())
    parser = _parser(command, f"{summary} {summaries}.", usage=f"{PROGRAM} {command} WHAT [options]")
    parser.add_argument("what", metavar="WHAT", type=str, help=", ".join(choices))
    if argv and argv[0] in choices:
        import_module(f".{command}.{argv[0]}", __package__).add_arguments(parser)
    return parser


def _run_choice(command: str, noun: str, choices: Mapping[str, str], arguments: Namespace) -> int:
    if arguments.what not in choices:
        raise UserError(f"there is no {noun} {arguments.what}: choose one of {', '.join(choices)}.")
    import_module(f".{command}.{arguments.what}", __package__).run(arguments)
    return 0


COMMANDS: dict[str, Command] = {
    "train": Command("train a detector on DATA", _build_train, _run_train),
    "evaluate": Command("average precision of MODEL on DATA", _build_evaluate, _run_evaluate),
    "predict": Command("find objects in pictures, draw and list them", _build_predict, _run_predict),
    "explain": Command("where the model looked, and why objects were missed", _build_explain, _run_explain),
    "inspect": Command("what is in DATA, and what is broken in it", _build_inspect, _run_inspect),
    "convert": Command(
        "rewrite MODEL as native, authors' or transformers' checkpoint", _build_convert, _run_convert
    ),
    "export": Command("write MODEL for ONNX, OpenVINO or torch.export, checked", _build_export, _run_export),
    "demo": Command("the whole way offline, in a few minutes", _build_demo, _run_demo),
    "benchmark": Command(
        "time this package and its peers on this machine",
        _build_benchmark,
        _run_benchmark,
        keeps_buffers=False,
    ),
    "paper": Command("the paper's tables and figures, run here", _build_paper, _run_paper),
    "doctor": Command("versions, devices, kernels, self-test", _build_doctor, _run_doctor),
}
