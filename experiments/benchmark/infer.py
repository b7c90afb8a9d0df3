"""`python -m experiments.benchmark infer`: one picture through the whole model, against peers.

Every rival runs in a separate process, as its users run it: ours makes the allocator keep large buffers
(allocator.py) and, beside other processes, keeps waiting threads from spinning for long (openmp.py), as its
commands do; the others use the defaults. They take turns, with `--beside N` while N other processes keep the
processor busy. Ours is timed from the decoded picture to detections; for the others only the model is timed,
on prepared pixels. All use the same random weights, and the result states how far their outputs are from
those of our plain model. ONNX Runtime and OpenVINO run transformers' model as torch.onnx exports it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from deformable_detr import checkpoint as checkpoints
from deformable_detr.checkpoint import Checkpoint, class_table_for, transformers_format
from deformable_detr.checkpoint.families import family_of
from deformable_detr.cli.options import Parser
from deformable_detr.config import ModelConfig, RunConfig
from deformable_detr.config import recipe as recipe_of
from deformable_detr.errors import UserError
from deformable_detr.inference.backend import Backend
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.devices import cpu_has_bfloat16
from deformable_detr.inference.exported.model import engine
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inference.torch_backends import RunnerBackend, TorchBackend
from deformable_detr.structures import ImageBatch
from deformable_detr.system.allocator import keep_large_buffers
from deformable_detr.system.memory import peak_bytes

from .infer_tables import (
    BF16,
    COLD_PREDICT,
    HELP,
    IMPORTS,
    ONNXRUNTIME,
    OPENVINO,
    OPENVINO_BF16,
    OURS,
    PEERS,
    PLAIN,
    TRANSFORMERS,
    TRANSFORMERS_BF16,
    goals_of,
    print_tables,
)
from .measure import (
    Timing,
    alternate,
    chosen_peers,
    machine,
    write_report,
)
from .rivals import (
    add_shared_arguments,
    busy_processes,
    environment_of_our_commands,
    parsed_size,
    process_of_each,
)
from .tables import print_participants

Outputs = tuple[np.ndarray, np.ndarray]  # logits (1, Q, classes), boxes_cxcywh (1, Q, 4)


@dataclass(frozen=True)
class Work:
    """The task of every rival, which is to run `recipe`'s model on one picture of `size` (height, width).

    `onnx` is the file to which transformers' model is exported.
    """

    recipe: str
    size: tuple[int, int]
    threads: int
    onnx: Path
    seed: int = 0

    @property
    def config(self) -> RunConfig:
        return recipe_of(self.recipe)


@dataclass(frozen=True)
class Rival:
    """The call to time, `run`, and `outputs`, which returns the model's outputs for the same picture."""

    run: Callable[[], object]
    outputs: Callable[[], Outputs]


def add_arguments(parser: Parser) -> None:
    add_shared_arguments(parser, "800x1066", PEERS)
    parser.option("--beside", int, 0, "Keep this many other processes busy while models are timed.")


def run(arguments: Namespace) -> None:
    benchmark_infer(**vars(arguments), console=Console())


def benchmark_infer(
    *,
    recipe: str,
    size: str,
    against: str | None,
    threads: int | None,
    repeats: int,
    beside: int,
    output: str | None,
    console: Console,
) -> dict[str, Any]:
    """Measure, print tables to `console`, write `output` if given, and return what was written.

    Raises:
        UserError: if a recipe or peer is unknown, or a number is out of range.
    """
    if repeats < 1 or (threads is not None and threads < 1):
        raise UserError("--repeats and --threads must be at least 1.")
    if beside < 0:
        raise UserError(f"--beside {beside}: must be 0 or more.")
    height_width, model = parsed_size(size), recipe_of(recipe).model
    peers, missing = peers_of(against, model)
    facts = machine()
    print_participants(console, facts, peers, missing)
    if not cpu_has_bfloat16():
        console.print("bf16: not measured, this CPU has no bfloat16 instructions")
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        work = Work(recipe, height_width, threads or torch.get_num_threads(), onnx)
        if {ONNXRUNTIME, OPENVINO} & peers.keys():
            with ProcessPoolExecutor(1, get_context("spawn")) as process:  # it takes memory, and prints
                process.submit(export_onnx, work).result()
        measured = _measured(work, rivals_of(peers), repeats, beside)
        cold = _cold_predict_seconds(work, Path(folder))
    timings = {name: each.timing for name, each in measured.items()}
    memory = {name: each.peak_bytes for name, each in measured.items()}
    distances = {
        name: output_distance(each.outputs, measured[PLAIN].outputs) for name, each in measured.items()
    }
    commands = {
        IMPORTS: _seconds_of("import torch"),
        HELP: _help_seconds(),
        COLD_PREDICT: cold,
    }
    goals = goals_of(timings, memory, commands, beside)
    print_tables(recipe, work.size, work.threads, timings, memory, distances, commands, goals, console)
    if beside:
        console.print(f"timed while {beside} other processes kept the processor busy")
    report = {
        "benchmark": "infer",
        "machine": facts,
        "settings": {
            "recipe": recipe,
            "size": work.size,
            "threads": work.threads,
            "repeats": repeats,
            "beside": beside,
        },
        "peers": peers,
        "missing_peers": missing,
        "timings": {name: timing.to_dict() for name, timing in timings.items()},
        "peak_bytes": memory,
        "largest_distance_to_plain": distances,
        "command_seconds": commands,
        "targets": [asdict(goal) | {"verdict": goal.verdict} for goal in goals],
    }
    if output is not None:
        write_report(output, report)
        console.print(f"written: {output}")
    return report


def peers_of(against: str | None, model: ModelConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of the peers that take part and the reasons for leaving out the others, by name."""
    installed, missing = chosen_peers(against, PEERS)
    needs_transformers = [name for name in (ONNXRUNTIME, OPENVINO) if name in installed]
    try:
        family_of(model, transformers_format.PROJECT)
    except UserError as error:
        return {}, {**missing, **dict.fromkeys(installed, str(error))}
    for name in needs_transformers:
        _, absent = chosen_peers("onnxscript,transformers", {"onnxscript": "onnxscript", **PEERS})
        if absent:
            missing[name] = "its model is exported with " + ", ".join(f"{n}: {r}" for n, r in absent.items())
            del installed[name]
    return installed, missing


# ---- Rivals --------------------------------------------------------------------------------------


def rivals_of(peers: Mapping[str, str]) -> list[str]:
    rivals = [*peers, PLAIN, OURS]
    if cpu_has_bfloat16():
        with_bf16 = {TRANSFORMERS: TRANSFORMERS_BF16, OPENVINO: OPENVINO_BF16}
        rivals += [BF16, *(with_bf16[name] for name in peers if name in with_bf16)]
    return rivals


def rival(name: str, work: Work) -> Rival:
    """Set up a rival in this process."""
    torch.set_num_threads(work.threads)
    if name in (TRANSFORMERS, TRANSFORMERS_BF16):
        return _transformers(work, bf16=name == TRANSFORMERS_BF16)
    if name == ONNXRUNTIME:
        return _onnxruntime(work)
    if name in (OPENVINO, OPENVINO_BF16):
        return _openvino(work, "bf16" if name == OPENVINO_BF16 else "f32")
    return _ours(work, name)


def _ours(work: Work, name: str) -> Rival:
    checkpoint = _checkpoint(work)
    backend: Backend
    if name == PLAIN:
        backend = TorchBackend(checkpoint.model, torch.device("cpu"), torch.float32)
    else:
        keep_large_buffers()
        dtype = torch.bfloat16 if name == BF16 else torch.float32
        backend = RunnerBackend(checkpoint.model, torch.device("cpu"), dtype)
    detector = Detector(checkpoint, backend)
    picture = _picture(work)

    def outputs() -> Outputs:
        found = backend(ImageBatch.from_images([detector.preprocess(picture)]))
        return found.logits.float().numpy(), found.boxes_cxcywh.numpy()

    return Rival(lambda: detector.detect([detector.preprocess(picture)], [work.size]), outputs)


def _transformers(work: Work, bf16: bool) -> Rival:
    model = _transformers_model(work)
    pixels, mask = _pixels(work)

    def outputs() -> Outputs:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            found = model(pixel_values=pixels, pixel_mask=mask)
        return found.logits.float().numpy(), found.pred_boxes.float().numpy()

    return Rival(outputs, outputs)


def _onnxruntime(work: Work) -> Rival:
    onnxruntime = engine("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    session = onnxruntime.InferenceSession(work.onnx, options, providers=["CPUExecutionProvider"])
    inputs = dict(zip(("pixels", "mask"), (each.numpy() for each in _pixels(work)), strict=True))

    def outputs() -> Outputs:
        logits, boxes = session.run(["logits", "boxes"], inputs)
        return logits, boxes

    return Rival(outputs, outputs)


def _openvino(work: Work, precision: str) -> Rival:
    openvino = engine("openvino")
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": work.threads}
    compiled = openvino.Core().compile_model(work.onnx, "CPU", settings)
    inputs = dict(zip(("pixels", "mask"), (each.numpy() for each in _pixels(work)), strict=True))

    def outputs() -> Outputs:
        found = compiled(inputs)
        return found["logits"], found["boxes"]

    return Rival(outputs, outputs)


def _checkpoint(work: Work) -> Checkpoint:
    """Return a model with random weights.

    With the weights of a new model, boxes and sampling offsets would not depend on the picture.
    """
    torch.manual_seed(work.seed)
    config = work.config
    data = replace(config.data, image_size=min(work.size), max_size=max(work.size))  # nothing is resized
    checkpoint = new_checkpoint(
        config.model, class_table_for(config.model.num_classes), data, work.recipe, None
    )
    with torch.no_grad():
        for name, parameter in checkpoint.model.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return checkpoint


def _picture(work: Work) -> Image.Image:
    coarse = np.random.default_rng(work.seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(work.size[::-1], Image.Resampling.BICUBIC)


def _pixels(work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs of transformers' model: pixels, and a mask that is one inside the picture."""
    config = _checkpoint(work)
    pixels = Detector.of(config, "cpu").preprocess(_picture(work))[None]
    return pixels, torch.ones(1, *pixels.shape[2:], dtype=torch.long)


def _transformers_model(work: Work) -> nn.Module:
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        transformers_format.save(path, _checkpoint(work))
        model: nn.Module = transformers.AutoModelForObjectDetection.from_pretrained(path)
    return model.eval()


class _PixelsToPredictions(nn.Module):
    """A wrapper of transformers' model that returns plain tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(pixel_values=pixels, pixel_mask=mask)
        return output.logits, output.pred_boxes


def export_onnx(work: Work) -> None:
    """Write transformers' model to `work.onnx`, for one picture size."""
    model = _PixelsToPredictions(_transformers_model(work))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            _pixels(work),
            work.onnx,
            input_names=["pixels", "mask"],
            output_names=["logits", "boxes"],
            dynamo=True,
            verbose=False,
        )


# ---- Measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Measurements of one rival. `peak_bytes` is the peak resident memory of its process since its start."""

    timing: Timing
    outputs: Outputs
    peak_bytes: int


def _measured(work: Work, rivals: list[str], repeats: int, beside: int) -> dict[str, Measured]:
    with process_of_each(rivals, partial(_set_up, work), partial(_environment_of, beside)) as processes:
        calls = {name: partial(_turn, process) for name, process in processes.items()}
        with busy_processes(beside):
            timings = alternate(calls, repeats=repeats, warmup=2, turn_seconds=0.0)
        peaks = {name: process.submit(peak_bytes).result() for name, process in processes.items()}
        outputs = {name: process.submit(_outputs_here).result() for name, process in processes.items()}
    return {name: Measured(timings[name], outputs[name], peaks[name]) for name in rivals}


def _environment_of(beside: int, rival: str) -> dict[str, str]:
    return environment_of_our_commands(busy=beside > 0) if rival in (OURS, BF16) else {}


def _turn(process: ProcessPoolExecutor) -> None:
    process.submit(_run_here).result()


_here: dict[str, Rival] = {}  # the rival of this process


def _set_up(work: Work, name: str) -> None:
    _here["rival"] = rival(name, work)


def _run_here() -> None:
    _here["rival"].run()


def _outputs_here() -> Outputs:
    return _here["rival"].outputs()


def output_distance(found: Outputs, wanted: Outputs) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))


def _seconds_of(code: str, threads: int | None = None) -> float:
    """Return the seconds that a fresh Python process takes to run `code`, the faster of two attempts."""
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    times = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment)
        times.append(time.perf_counter() - start)
    return min(times)


def _cold_predict_seconds(work: Work, folder: Path) -> float:
    """Time `deformable-detr predict` on one picture, as a user runs it."""
    checkpoints.save(folder / "model", _checkpoint(work))
    _picture(work).save(folder / "picture.png")
    arguments = ["predict", str(folder / "model"), str(folder / "picture.png")]
    arguments += ["--output", str(folder / "found")]
    return _seconds_of(
        f"from deformable_detr.cli import main; raise SystemExit(main({arguments}))", work.threads
    )


def _help_seconds() -> float:
    return _seconds_of("from deformable_detr.cli import main; main(['--help'])")
