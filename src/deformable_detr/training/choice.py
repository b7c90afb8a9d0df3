"""The choice of a recipe if the user names none, and a line that states how long the run will take."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..config import RunConfig
from ..errors import UserError
from ..inference.devices import choose_device
from ..words import duration

ON_CPU, ON_GPU = "deformable_detr_lite", "deformable_detr_r50_two_stage"


def usual_recipe(device: str) -> str:
    """Return the name of the recipe that trains in hours, not weeks, on `device` (auto, cpu or cuda).

    Raises:
        UserError: if this machine does not have the device.
    """
    return ON_GPU if choose_device(device).type == "cuda" else ON_CPU


def choice_line(data: str | Path, config: RunConfig, device: str, console: Console, *, alone: bool) -> str:
    """Return a line with the chosen recipe, the expected duration, and the recipe for the other device.

    The other device is a GPU if this run uses a CPU, and a CPU if it uses a GPU. If the duration cannot be
    measured, the line says so.

    Args:
        data: the folder of the data set, on which updates are measured.
        config: the configuration of the chosen recipe.
        device: `auto`, `cpu` or `cuda`.
        console: if it is a terminal, it shows a note while updates are measured.
        alone: False if several processes train; then the duration is not measured.

    Raises:
        UserError: if this machine does not have the device.
    """
    on_gpu = choose_device(device).type == "cuda"
    here, there, other = ("GPU", "CPU", ON_CPU) if on_gpu else ("CPU", "GPU", ON_GPU)
    expected = ""
    if alone:
        with console.status("measuring a few updates to estimate how long training takes"):
            expected = f"; {_expected(data, config, device)}"
    return (
        f"Training {config.recipe}, the recipe for a {here}{expected}. For a {there} it would be {other}; "
        "--recipe chooses another."
    )


def _expected(data: str | Path, config: RunConfig, device: str) -> str:
    from .forecast import forecast  # not at the top, because its process runs that file

    try:
        measured = forecast(data, config, device=device, seconds=0.0)
    except (UserError, RuntimeError):  # training will fail for the same reason and print it
        return "how long it will take could not be measured"
    epochs = float(measured.epochs)
    if config.train.max_steps is not None:
        epochs = min(epochs, config.train.max_steps / measured.updates_per_epoch)
    expected = f"it will take about {duration(epochs * measured.epoch_seconds)} here"
    if measured.is_disturbed:
        expected += f" (when the machine is idle, up to {measured.slowdown:.0f} times less)"
    return expected
