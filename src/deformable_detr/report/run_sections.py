"""The sections on a run: training, settings, data, and commands to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import yaml

from ..config import to_dict
from ..data.formats import NOTES
from ..data.records import Split
from ..run_folder.reading import History, changes_from_recipe
from .accuracy import SIZE_EDGES
from .content import Content, Section
from .findings import (
    data_title,
    duration,
    loss_title,
    rate_title,
    training_title,
)
from .html_parts import command_line, count, facts, figure, table, value_text, when
from .svg import Line, Mark, axis_for, line_chart, whole_axis

MOST_CLASS_CURVES = 8
MOST_DOTS = 60
MOST_OPEN = 12  # classes in a list that is not folded away
AP_COLOURS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}


def training_section(history: History) -> Section:
    title = training_title(history)
    figures = []
    if len(history.evaluations) > 1:
        figures.append(figure("AP, epoch by epoch", _ap_chart(history)))
        if 1 < len(history.evaluations[-1].get("per_class", {})) <= MOST_CLASS_CURVES:
            figures.append(figure("AP of each class", _class_chart(history)))
    if history.updates:
        figures += _update_figures(history)
    body = f'<h2>Training: {escape(title)}</h2><div class="grid">{"".join(figures)}</div>'
    return Section("training", "Training", body)


def _update_figures(history: History) -> list[str]:
    rows = history.updates
    steps = [row["step"] for row in rows]
    x = whole_axis("update", 0, steps[-1])
    marks = [Mark(start["step"], "resumed") for start in history.starts if start.get("step")]
    losses = [row["loss"] for row in rows]
    y = axis_for("loss, all terms and layers", _without_spikes(losses))
    chart = line_chart([Line("loss", steps, losses, 0)], x, y, title=loss_title(history), marks=marks)
    figures = [figure(loss_title(history), chart)]

    terms = {
        name: [row.get(name, np.nan) for row in rows]
        for name in ("class", "box", "giou")
        if any(name in row for row in rows)
    }
    if terms:
        everything = [value for values in terms.values() for value in values]
        chart = line_chart(
            [Line(name, steps, values, colour) for colour, (name, values) in enumerate(terms.items())],
            x,
            axis_for("loss, before weights", _without_spikes(everything)),
            title="Loss terms of the last decoder layer",
        )
        note = "class: is it called by its name; box: distance of the boxes; giou: their overlap."
        figures.append(figure("Loss terms of the last decoder layer", chart, note))

    groups = list(dict.fromkeys(name for row in rows for name in row.get("learning_rate", {})))
    if groups:
        rates = {
            name: 1e4 * np.array([row.get("learning_rate", {}).get(name, np.nan) for row in rows])
            for name in groups
        }
        chart = line_chart(
            [Line(name, steps, rates[name], colour, dashed=colour > 0) for colour, name in enumerate(groups)],
            x,
            axis_for("learning rate, in units of 1e-4", np.concatenate(list(rates.values()))),
            title=rate_title(history),
        )
        figures.append(figure(rate_title(history), chart))
    return figures


def _ap_chart(history: History) -> str:
    rows = history.evaluations
    epochs = [row["epoch"] + 1 for row in rows]
    lines = []
    for name, colour in AP_COLOURS.items():
        values = np.array([100 * row.get(name, -1.0) for row in rows])
        values[values < 0] = np.nan
        if np.isfinite(values).any():
            dots = name == "AP" and len(rows) <= MOST_DOTS
            dashed = name in ("APs", "APm", "APl")
            lines.append(Line(name, epochs, values, colour, dashed=dashed, dots=dots))
    marks = [] if history.best is None else [Mark(history.best["epoch"] + 1, "best")]
    return _percent_chart(lines, epochs[-1], training_title(history), marks)


def _class_chart(history: History) -> str:
    rows = [row for row in history.evaluations if "per_class" in row]
    epochs = [row["epoch"] + 1 for row in rows]
    lines = [
        Line(name, epochs, [100 * row["per_class"].get(name, {}).get("AP", np.nan) for row in rows], colour)
        for colour, name in enumerate(rows[-1]["per_class"])
    ]
    return _percent_chart(lines, epochs[-1], "AP of each class, epoch by epoch")


def _percent_chart(lines: Sequence[Line], epochs: int, title: str, marks: Sequence[Mark] = ()) -> str:
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in lines] or [np.zeros(1)])
    highest = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    y = axis_for("percent", [0.0, max(highest, 1.0)])
    return line_chart(lines, whole_axis("epoch", 1, epochs), y, title=title, marks=marks)


def _without_spikes(values: Sequence[float]) -> np.ndarray:
    """Rare spikes would flatten all the rest."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite) < 20:
        return finite
    return finite[finite <= 1.5 * np.quantile(finite, 0.98)]


# ---------------------------------------------------------------- settings


def settings_section(content: Content) -> Section:
    detector, history = content.detector, content.history
    config = detector.config
    parameters = sum(p.numel() for p in detector.model.parameters())
    rows = {
        "recipe": detector.recipe,
        "model": f"{parameters / 1e6:.1f} million parameters, backbone {config.backbone.name}, "
        f"{count(config.num_queries, 'query', 'queries')}, {count(config.num_levels, 'feature level')}, "
        f"{config.encoder_layers} encoder and {count(config.decoder_layers, 'decoder layer')}",
        "pictures": f"short side {detector.data.image_size} pixels, long side at most "
        f"{detector.data.max_size}",
    }
    title, details = f"Settings of {detector.recipe}", ""
    if history is not None:
        rows.update(_run_facts(history))
        changes = changes_from_recipe(history.config)
        title = f"The recipe {detector.recipe}, without a change"
        if changes:
            verb = "differs" if len(changes) == 1 else "differ"
            title = f"{count(len(changes), 'setting')} {verb} from the recipe {detector.recipe}"
            details = table(
                ["setting", "recipe", "this run"],
                [[each.path, value_text(each.recipe), value_text(each.run)] for each in changes],
                label="Settings that differ from the recipe",
                kind="settings",
                left=(1, 2),
            )
        text = yaml.safe_dump(to_dict(history.config), sort_keys=False)
        details += (
            f"<details><summary>All settings (config.yaml)</summary><pre>{escape(text)}</pre></details>"
        )
    rows["this report"] = (
        f"{when(content.made['time'])} on {content.made['device']}; {_versions(content.made)}"
    )
    return Section("settings", "Settings", f"<h2>{escape(title)}</h2>{facts(rows)}{details}")


def _run_facts(history: History) -> dict[str, str]:
    train = history.config.train
    most = "" if train.max_steps is None else f", at most {count(train.max_steps, 'update')}"
    rows = {
        "schedule": f"{count(train.epochs, 'epoch')}{most}, batch {train.batch_size} x {train.accumulate}, "
        f"{train.precision}, seed {train.seed}"
    }
    if train.ema_decay:
        rows["weights"] = f"moving average over updates, decay {train.ema_decay}"
    speeds = [row["images_per_second"] for row in history.updates if "images_per_second" in row]
    if history.seconds is not None:
        rows["time"] = f"{duration(history.seconds)} of training, evaluation left out"
    if speeds:
        rows["speed"] = f"{float(np.median(speeds)):.1f} images per second in training (median)"
    for number, start in enumerate(history.starts):
        name = "started" if number == 0 else f"resumed after update {start.get('step', '?')}"
        rows[name] = (
            f"{when(str(start.get('time', '?')))} on {start.get('device', '?')}, "
            f"{count(int(start.get('processes', 1)), 'process', 'processes')}; {_versions(start)}"
        )
    return rows


def _versions(row: Mapping[str, Any]) -> str:
    versions = {"python": row.get("python", "?"), **row.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# ---------------------------------------------------------------- data


def data_section(splits: Sequence[Split]) -> Section:
    """splits: at least one."""
    heads = [split.name for split in splits]
    columns = [_split_facts(split) for split in splits]
    counts = [class_counts(split) for split in splits]
    names = list(dict.fromkeys(name for each in counts for name in each))
    summary = table(
        ["", *heads], [[fact, *(column[fact] for column in columns)] for fact in columns[0]], label="The data"
    )
    listed = table(
        ["class", *heads],
        [[name, *(f"{each.get(name, 0):,}" for each in counts)] for name in names],
        label="Objects of each class",
        kind="sortable",
    )
    sources = ", ".join(dict.fromkeys(str(split.source) for split in splits))
    opened = " open" if len(names) <= MOST_OPEN else ""
    body = (
        f"<h2>{escape(data_title(splits, counts[0]))}</h2>{summary}"
        f"<details{opened}><summary>Objects of each class</summary>{listed}</details>"
        f'<p class="dim">Read from {escape(sources)}. <code>deformable-detr inspect</code> lists what is '
        "broken in it.</p>"
    )
    return Section("data", "Data", body)


def _split_facts(split: Split) -> dict[str, str]:
    areas = np.concatenate([image.area[~image.crowd] for image in split.images])
    counts = np.array([int((~image.crowd).sum()) for image in split.images])
    total = max(len(areas), 1)
    sizes = sorted({image.size for image in split.images}, key=lambda size: size[0] * size[1])
    smallest, largest = (f"{width} x {height}" for height, width in (sizes[0], sizes[-1]))
    return {
        "images": f"{len(split):,}",
        "without objects": f"{int((counts == 0).sum()):,}",
        "size of the images": smallest if smallest == largest else f"{smallest} to {largest}",
        "objects": f"{len(areas):,}",
        "per image, mean and most": f"{counts.mean():.1f}, {counts.max()}",
        "small, medium, large": ", ".join(
            f"{number / total:.0%}" for number in np.histogram(areas, SIZE_EDGES)[0]
        ),
        "problems in the files": f"{sum(each.kind not in NOTES for each in split.problems):,}",
    }


def class_counts(split: Split) -> dict[str, int]:
    """Objects of each class, crowds left out."""
    labels = np.concatenate([image.labels[~image.crowd] for image in split.images])
    counts = np.bincount(labels, minlength=len(split.classes))
    return {name: int(counts[label]) for label, name in enumerate(split.classes.names) if name is not None}


# ---------------------------------------------------------------- what next


def commands(content: Content) -> list[tuple[str, str]]:
    """(what for, command line) to go on with."""
    model, data, accuracy = content.model, content.data, content.accuracy
    above = ("--threshold", f"{0.5 if accuracy is None else accuracy.threshold:.2f}")
    found: list[tuple[str, tuple[str, ...]]] = [
        ("find objects in your pictures", ("predict", model, "PICTURES", "--output", "out", *above)),
        ("see where it looked, in a page", ("explain", model, "PICTURE.jpg", "--output", "out.html", *above)),
    ]
    if accuracy is not None:
        part = ("--split", accuracy.split.name)
        missed = ("explain", model, "--missed", data, *part, *above, "--output", "missed")
        found.append(("judge and draw every missed object", missed))
        found.append(("measure again, here or elsewhere", ("evaluate", model, data, *part)))
    if content.history is not None:
        longer = ("train", data, "--init-from", model, "--output", f"{model.rstrip('/')}-longer")
        found.append(("train on from these weights", longer))
    return [(what, command_line(*words)) for what, words in found]


def next_section(content: Content) -> Section:
    lines = "\n".join(f"# {what}\n{line}\n" for what, line in commands(content))
    return Section("next", "What next", f"<h2>What next</h2><pre>{escape(lines.rstrip())}</pre>")
