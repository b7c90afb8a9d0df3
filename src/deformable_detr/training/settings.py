"""The settings with which a run starts, and the splits for training and evaluation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import checkpoint as checkpoints
from ..config import ModelConfig, RunConfig, read_config, read_yaml, with_file
from ..config import recipe as recipe_of
from ..data.formats import list_splits, read_split
from ..data.formats.losses import main_reason
from ..data.formats.splits import name_to_measure_on
from ..data.records import Split
from ..data.remote_folder import remote_folder
from ..errors import UserError
from ..evaluation import match_classes
from ..run_folder.names import RUN_CONFIG_FILE
from .choice import usual_recipe
from .state import require_state


def resolve_config(
    recipe: str | None,
    output: str | Path,
    *,
    config: str | Path | None = None,
    init_from: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> RunConfig:
    """Return the configuration of a run before the command's flags are applied.

    The fields that the file `config` sets replace those of the stopped run (with `resume`) or of the recipe.

    Args:
        recipe: the name of the recipe. None means that of the run to resume, otherwise the one that `config`
            names, otherwise that of the model `init_from`, otherwise the usual one for the device.
        output: the run folder, which is read only with `resume`.
        config: a YAML file with fields of `RunConfig`.
        init_from: a model. If it determines the recipe, it also determines the architecture and the
            preprocessing.
        resume: True to start from the configuration of the run in `output`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: if the recipe is unknown, a file cannot be read or has an invalid field, two recipes
            contradict each other, there is no run to resume, or the device is missing.
    """
    content = {} if config is None else read_yaml(Path(config))
    name = content.get("recipe", recipe)
    if recipe not in (None, name):
        raise UserError(f"{config} is for recipe {name}, not for {recipe}: name only one of them.")
    if resume:
        base = _config_of_run(Path(output), name)
    elif name is not None:
        base = recipe_of(name)
    elif init_from is not None:
        base = _config_of_model(init_from)
    else:
        base = recipe_of(usual_recipe(device))
    return base if config is None else with_file(base, Path(config), content)


def names_a_recipe(
    recipe: str | RunConfig | None, config: str | Path | None, init_from: str | Path | None, resume: bool
) -> bool:
    """Return whether one of these arguments of `train` determines the recipe.

    Raises:
        UserError: if the file `config` cannot be read.
    """
    in_file = config is not None and "recipe" in read_yaml(Path(config))
    return recipe is not None or init_from is not None or resume or in_file


def _config_of_run(output: Path, recipe: str | None) -> RunConfig:
    require_state(output)
    base = read_config(output / RUN_CONFIG_FILE, RunConfig())
    if recipe not in (None, base.recipe):
        raise UserError(
            f"--resume: {output} is a run of {base.recipe}, not of {recipe}: leave the recipe out, or "
            "choose another --output."
        )
    return base


def _config_of_model(init_from: str | Path) -> RunConfig:
    source = checkpoints.load(init_from)
    base = recipe_of(source.recipe)
    return replace(
        base,
        model=replace(source.config, num_classes=base.model.num_classes),
        # The format and location of the new data, and how strictly to read them, do not come from the model.
        data=replace(source.data, format=base.data.format, strict=base.data.strict, images=base.data.images),
    )


def read_splits(data: str | Path, config: RunConfig) -> tuple[Split, Split | None]:
    """Read the split to train on and the split to evaluate on, which is None if the data have none.

    Raises:
        UserError: if the data cannot be read, there is no object to train on, or the two splits have no
            class in common.
    """
    folder = remote_folder(config.data.images, config.data.cache_gb, config.data.cache_folder)
    read = partial(read_split, data, format=config.data.format, strict=config.data.strict, images=folder)
    train = read("train")
    if train.num_objects == 0:
        crowds = sum(map(len, train.images))
        only = f" (only {crowds:,} crowd regions)" if crowds else ""
        raise UserError(
            f"the split {train.name} of {train.source} has no object to train on{only}"
            f"{main_reason(train)}: correct the annotations."
        )
    name = name_to_measure_on(list_splits(data, format=config.data.format))
    if name is None:
        return train, None
    val = read(name)
    try:  # check now, not after hours of training
        match_classes(train.classes, val.classes, val.source)
    except UserError as error:
        raise UserError(
            f"{train.source} and {val.source} have no class in common: give both splits the same class names."
        ) from error
    return train, val


def config_for_classes(config: RunConfig, split: Split) -> RunConfig:
    """Return the configuration with the data set's number of classes.

    Raises:
        UserError: if `model.num_classes` was set to another number.
    """
    requested, present = config.model.num_classes, len(split.classes)
    if requested not in (ModelConfig.num_classes, present):
        raise UserError(
            f"model.num_classes is {requested}, but {split.source} has {present} classes: leave the option "
            "out, because the number comes from the data."
        )
    return replace(config, model=replace(config.model, num_classes=present))


def describe_data(train: Split, val: Split | None) -> dict[str, Any]:
    """Return the numbers of images and the class names of a run's data, as values for JSON.

    `val_images` is None if there is no split to evaluate on. No value depends on where the data are stored.
    """
    return {
        "train_images": len(train),
        "val_images": None if val is None else len(val),
        "classes": list(train.classes.names),
    }
