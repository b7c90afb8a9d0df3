"""The report's sections on a run: training, settings, data, and suggested commands for the next steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from ..config import to_dict
from ..data.formats import NOTES
from ..data.records import Split
from ..evaluation.areas import count_sizes
from ..pages import Axis, Line, Mark, Table, axis_for, line_chart, whole_axis
from ..run_folder.reading import History, changes_from_recipe
from ..words import command_line, count, duration, setting, when
from .accuracy_sections import Figure
from .content import Content, Section
from .findings import (
    data_title,
    loss_title,
    rate_title,
    training_title,
)

MAX_CLASS_CURVES = 8
MAX_DOTS = 60
MAX_OPEN = 12  # a longer list of classes starts folded
AP_COLOURS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}


def training_section(history: History) -> Section:
    figures: list[Figure] = []
    if len(history.evaluations) > 1:
        figures.append(("AP, epoch by epoch", _ap_chart(history), ""))
        if 1 < len(history.evaluations[-1].get("per_class", {})) <= MAX_CLASS_CURVES:
            figures.append(("AP of each class", _class_chart(history), ""))
    if history.updates:
        x = whole_axis("update", 0, history.updates[-1]["step"])
        figures += [_loss_figure(history, x), *_all_term_figures(history, x), *_rate_figures(history, x)]
    return Section("training", "Training", f"Training: {training_title(history)}", {"figures": figures})


def _loss_figure(history: History, x: Axis) -> Figure:
    losses = [row["loss"] for row in history.updates]
    marks = [Mark(start["step"], "resumed") for start in history.starts if start.get("step")]
    y, title = axis_for("loss, all terms and layers", _without_spikes(losses)), loss_title(history)
    return title, line_chart([Line("loss", _steps(history), losses, 0)], x, y, title=title, marks=marks), ""


def _all_term_figures(history: History, x: Axis) -> list[Figure]:
    """Return the figures of the model's own loss terms and of those of each training route."""
    title = "Loss terms of the last decoder layer"
    figures = _term_figures(history, x, "", title)
    for route in _routes(history):
        figures += _term_figures(history, x, f"_{route}", f"{title}, route {route}")
    return figures


def _routes(history: History) -> list[str]:
    """Return the names of the training routes that have losses in the log.

    A route has a loss called `class_NAME`. Losses whose names end in a layer's number or in `proposals` are
    left out, because they are further losses of a route or of the model itself.
    """
    names = dict.fromkeys(name for row in history.updates for name in row if name.startswith("class_"))
    suffixes = [name.removeprefix("class_") for name in names]
    return [
        suffix
        for suffix in suffixes
        if not (last := suffix.rpartition("_")[2]).isdecimal() and last != "proposals"
    ]


def _term_figures(history: History, x: Axis, suffix: str, title: str) -> list[Figure]:
    """Return a list of one figure: the losses that the log calls `class`, `box` and `giou`, with `suffix`.

    The list is empty if the log has none of these losses.
    """
    terms = {
        name: [row.get(name + suffix, np.nan) for row in history.updates]
        for name in ("class", "box", "giou")
        if any(name + suffix in row for row in history.updates)
    }
    if not terms:
        return []
    everything = [value for values in terms.values() for value in values]
    lines = [
        Line(name, _steps(history), values, colour) for colour, (name, values) in enumerate(terms.items())
    ]
    chart = line_chart(lines, x, axis_for("loss, before weights", _without_spikes(everything)), title=title)
    return [
        (title, chart, "class: the predicted class; box: the distance between boxes; giou: their overlap.")
    ]


def _rate_figures(history: History, x: Axis) -> list[Figure]:
    """Return the figure of the learning rates as a list of one; the list is empty if the log has none."""
    rows = [row.get("learning_rate", {}) for row in history.updates]
    rates = {
        name: 1e4 * np.array([row.get(name, np.nan) for row in rows])
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    if not rates:
        return []
    lines = [
        Line(name, _steps(history), values, colour, dashed=colour > 0)
        for colour, (name, values) in enumerate(rates.items())
    ]
    y = axis_for("learning rate, in units of 1e-4", np.concatenate(list(rates.values())))
    return [(rate_title(history), line_chart(lines, x, y, title=rate_title(history)), "")]


def _steps(history: History) -> list[int]:
    return [row["step"] for row in history.updates]


def _ap_chart(history: History) -> Markup:
    rows = history.evaluations
    epochs = [row["epoch"] + 1 for row in rows]
    lines = []
    for name, colour in AP_COLOURS.items():
        values = np.array([100 * row.get(name, -1.0) for row in rows])
        values[values < 0] = np.nan
        if np.isfinite(values).any():
            dots = name == "AP" and len(rows) <= MAX_DOTS
            dashed = name in ("APs", "APm", "APl")
            lines.append(Line(name, epochs, values, colour, dashed=dashed, dots=dots))
    marks = [] if history.best is None else [Mark(history.best["epoch"] + 1, "best")]
    return _percent_chart(lines, epochs[-1], training_title(history), marks)


def _class_chart(history: History) -> Markup:
    rows = [row for row in history.evaluations if "per_class" in row]
    epochs = [row["epoch"] + 1 for row in rows]
    lines = [
        Line(name, epochs, [100 * row["per_class"].get(name, {}).get("AP", np.nan) for row in rows], colour)
        for colour, name in enumerate(rows[-1]["per_class"])
    ]
    return _percent_chart(lines, epochs[-1], "AP of each class, epoch by epoch")


def _percent_chart(lines: Sequence[Line], epochs: int, title: str, marks: Sequence[Mark] = ()) -> Markup:
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in lines] or [np.zeros(1)])
    highest = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    y = axis_for("percent", [0.0, max(highest, 1.0)])
    return line_chart(lines, whole_axis("epoch", 1, epochs), y, title=title, marks=marks)


def _without_spikes(values: Sequence[float]) -> np.ndarray:
    """Return the finite values without rare spikes, which would flatten the rest of the curve.

    A spike is more than 1.5 times as high as the 98 % quantile. If there are fewer than 20 finite values, all
    of them are returned.
    """
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite) < 20:
        return finite
    result: np.ndarray = finite[finite <= 1.5 * np.quantile(finite, 0.98)]
    return result


# ---------------------------------------------------------------- settings


def settings_section(content: Content) -> Section:
    detector, history = content.detector, content.history
    config = detector.config
    parameters = sum(p.numel() for p in detector.model.parameters())
    rows = {
        "recipe": detector.recipe,
        "model": f"{parameters / 1e6:.1f} million parameters, backbone {config.backbone.name}, "
        f"{count(config.num_queries, 'query')}, {count(config.num_levels, 'feature level')}, "
        f"{config.encoder_layers} encoder and {count(config.decoder_layers, 'decoder layer')}",
        "pictures": f"short side {detector.data.image_size} pixels, long side at most "
        f"{detector.data.max_size}",
    }
    title = f"Settings of {detector.recipe}"
    changes, text = None, ""
    if history is not None:
        rows.update(_run_facts(history))
        title, changes = _changes(history, detector.recipe)
        text = yaml.safe_dump(to_dict(history.config), sort_keys=False)
    environment = content.environment
    rows["this report"] = f"{when(environment['time'])} on {environment['device']}; {_versions(environment)}"
    return Section("settings", "Settings", title, {"facts": rows, "changes": changes, "config": text})


def _changes(history: History, recipe: str) -> tuple[str, Table | None]:
    """Return a title and a table of the settings that differ from the recipe's (None if none differ)."""
    changes = changes_from_recipe(history.config)
    if not changes:
        return f"The recipe {recipe}, unchanged", None
    verb = "differs" if len(changes) == 1 else "differ"
    rows = [[change.path, setting(change.recipe), setting(change.run)] for change in changes]
    label = "Settings that differ from the recipe"
    table = Table(["setting", "recipe", "this run"], rows, label, kind="settings", left=(1, 2))
    return f"{count(len(changes), 'setting')} {verb} from the recipe {recipe}", table


def _run_facts(history: History) -> dict[str, str]:
    train = history.config.train
    limit = "" if train.max_steps is None else f", at most {count(train.max_steps, 'update')}"
    rows = {
        "schedule": f"{count(train.epochs, 'epoch')}{limit}, batch {train.batch_size} x {train.accumulate}, "
        f"{train.precision}, seed {train.seed}"
    }
    if train.ema_decay:
        rows["weights"] = f"moving average over updates, decay {train.ema_decay}"
    speeds = [row["images_per_second"] for row in history.updates if "images_per_second" in row]
    if history.seconds is not None:
        rows["time"] = f"{duration(history.seconds)} of training, without evaluation"
    if speeds:
        rows["speed"] = f"{float(np.median(speeds)):.1f} images per second in training (median)"
    for number, start in enumerate(history.starts):
        name = "started" if number == 0 else f"resumed after update {start.get('step', '?')}"
        rows[name] = (
            f"{when(str(start.get('time', '?')))} on {start.get('device', '?')}, "
            f"{count(int(start.get('processes', 1)), 'process')}; {_versions(start)}"
        )
    return rows


def _versions(row: Mapping[str, Any]) -> str:
    versions = {"python": row.get("python", "?"), **row.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# ---------------------------------------------------------------- data


def data_section(splits: Sequence[Split]) -> Section:
    """Return the section that describes the `splits`, of which there must be at least one."""
    heads = [split.name for split in splits]
    columns = [_split_facts(split) for split in splits]
    counts = [class_counts(split) for split in splits]
    names = list(dict.fromkeys(name for each in counts for name in each))
    facts = [[fact, *(column[fact] for column in columns)] for fact in columns[0]]
    objects = [[name, *(f"{each.get(name, 0):,}" for each in counts)] for name in names]
    parts = {
        "summary": Table(["", *heads], facts, "The data"),
        "classes": Table(["class", *heads], objects, "Objects of each class", kind="sortable"),
        "open": len(names) <= MAX_OPEN,
        "sources": ", ".join(dict.fromkeys(str(split.source) for split in splits)),
    }
    return Section("data", "Data", data_title(splits, counts[0]), parts)


def _split_facts(split: Split) -> dict[str, str]:
    areas = np.concatenate([image.area[~image.crowd] for image in split.images])
    counts = np.array([image.num_objects for image in split.images])
    total = max(len(areas), 1)
    sizes = sorted({image.size for image in split.images}, key=lambda size: size[0] * size[1])
    smallest, largest = (f"{width} x {height}" for height, width in (sizes[0], sizes[-1]))
    return {
        "images": f"{len(split):,}",
        "without objects": f"{int((counts == 0).sum()):,}",
        "size of the images": smallest if smallest == largest else f"{smallest} to {largest}",
        "objects": f"{len(areas):,}",
        "per image, mean and maximum": f"{counts.mean():.1f}, {counts.max()}",
        "small, medium, large": ", ".join(f"{number / total:.0%}" for number in count_sizes(areas).values()),
        "problems in the files": f"{sum(each.kind not in NOTES for each in split.problems):,}",
    }


def class_counts(split: Split) -> dict[str, int]:
    """Return the number of objects of each class by the class's name, without crowds."""
    labels = np.concatenate([image.labels[~image.crowd] for image in split.images])
    counts = np.bincount(labels, minlength=len(split.classes))
    return {name: int(counts[label]) for label, name in enumerate(split.classes.names) if name is not None}


# ---------------------------------------------------------------- what next


def commands(content: Content) -> list[tuple[str, str]]:
    """Return pairs (purpose, command line) for the next steps."""
    model, data, accuracy = content.model, content.data, content.accuracy
    above: tuple[str, ...] = ()  # a model with its own thresholds needs no option
    if accuracy is not None and accuracy.cut.decision is None:
        above = ("--threshold", accuracy.cut.in_words())
    result: list[tuple[str, tuple[str, ...]]] = [
        ("find objects in your pictures", ("predict", model, "PICTURES", "--output", "out", *above)),
        ("see where the model looks", ("explain", model, "PICTURE.jpg", "--output", "out.html", *above)),
    ]
    if accuracy is not None:
        part = ("--split", accuracy.split.name)
        missed = ("explain", model, "--missed", data, *part, *above, "--output", "missed")
        result.append(("judge and draw every missed object", missed))
        result.append(("measure again, here or elsewhere", ("evaluate", model, data, *part)))
        if content.history is not None:
            again = ("evaluate", model, data, *part, "--decide", "0.9")
            result.append(("choose the model's thresholds again, for a precision of 0.9", again))
    if content.history is not None:
        longer = ("train", data, "--init-from", model, "--output", f"{model.rstrip('/')}-longer")
        result.append(("continue training from these weights", longer))
    return [(purpose, command_line(*words)) for purpose, words in result]


def next_section(content: Content) -> Section:
    return Section("next", "What next", "What next", {"commands": commands(content)})
