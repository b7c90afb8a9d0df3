"""Configurations: what is refused and in which words, and the ways in and out of dictionaries."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr import models
from deformable_detr.config import (
    RECIPES,
    BackboneConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    RouteConfig,
    RunConfig,
    Setting,
    TrainConfig,
    from_dict,
    override,
    read_config,
    recipe,
    settings_of,
    to_dict,
)
from deformable_detr.config.checks import fits, from_text, written
from deformable_detr.errors import UserError
from deformable_detr.models import build, build_model
from deformable_detr.structures import ImageBatch

REFUSALS: list[tuple[type, dict[str, Any], str]] = [
    (BackboneConfig, {"name": ""}, "model.backbone.name is empty"),
    (BackboneConfig, {"trainable_layers": 6}, "must be from 0 to 5, not 6"),
    (BackboneConfig, {"trainable_layers": -1}, "must be from 0 to 5, not -1"),
    (BackboneConfig, {"name": "resnet18", "dilation": True}, "needs bottleneck blocks"),
    (BackboneConfig, {"deformable_stages": (3, 3)}, r"deformable_stages names a stage twice: \[3, 3\]"),
    (BackboneConfig, {"deformable_stages": (1,)}, "deformable_stages must hold only numbers .* from 2 to 5"),
    (BackboneConfig, {"name": "x", "deformable_stages": (3,)}, "works for resnet18, .*, not for x"),
    (ModelConfig, {"num_classes": 0}, "model.num_classes must be at least 1, not 0"),
    (ModelConfig, {"num_queries": 0}, "model.num_queries must be at least 1"),
    (ModelConfig, {"hidden_dim": 0}, "model.hidden_dim must be at least 1"),
    (ModelConfig, {"num_heads": 0}, "model.num_heads must be at least 1"),
    (ModelConfig, {"num_levels": 0}, "model.num_levels must be from 1 to 1000, not 0"),
    (ModelConfig, {"num_points": 0}, "model.num_points must be at least 1"),
    (ModelConfig, {"encoder_layers": -1}, "model.encoder_layers must be from 0 to 1000, not -1"),
    (ModelConfig, {"decoder_layers": 0}, "model.decoder_layers must be from 1 to 1000, not 0"),
    (ModelConfig, {"ffn_dim": 0}, "model.ffn_dim must be at least 1"),
    (ModelConfig, {"dropout": 1.0}, "model.dropout must be at least 0 and below 1, not 1.0"),
    (ModelConfig, {"nms_iou": 0.0}, "model.nms_iou must be above 0 and at most 1, or null, not 0.0"),
    (ModelConfig, {"hidden_dim": 256, "num_heads": 7}, r"\(256\) must be divisible by model.num_heads \(7\)"),
    (ModelConfig, {"hidden_dim": 6, "num_heads": 3}, "must be divisible by 4"),
    (ModelConfig, {"neck": "projection"}, "model.neck=projection makes one level"),
    (ModelConfig, {"attention": "dense"}, "dense attention reads one level"),
    (ModelConfig, {"queries": "static"}, "model.queries=static has no reference points"),
    (ModelConfig, {"queries": "proposals"}, "needs model.refine_references=true"),
    (ModelConfig, {"queries": "proposals", "classification": "softmax"}, "set model.classification=sigmoid"),
    (
        ModelConfig,
        {"queries": "proposals", "refine_references": True, "num_levels": 6},
        "works with up to 5 levels, not 6",
    ),
    (ModelConfig, {"queries": "mixed"}, "model.queries=mixed .* needs model.refine_references=true"),
    (DataConfig, {"image_size": 31}, "data.image_size must be from 32 to 10000, not 31"),
    (DataConfig, {"image_size": 900, "max_size": 899}, r"data.max_size \(899\) must not be smaller"),
    (DataConfig, {"train_sizes": ()}, "data.train_sizes must not be an empty list"),
    (DataConfig, {"train_sizes": (480, 16)}, r"that are from 32 to 10000, not \[480, 16\]"),
    (DataConfig, {"crop_min": 0}, "data.crop_min"),
    (DataConfig, {"crop_min": 601}, r"data.crop_min \(601\) must be at most data.crop_max \(600\)"),
    (DataConfig, {"crop_sizes": ()}, "data.crop_sizes"),
    (DataConfig, {"crop_sizes": (0,)}, "data.crop_sizes"),
    (
        DataConfig,
        {"std": (0.1, 0.0, 0.1)},
        r"hold only numbers that are above 0, not \[0.1, 0.0, 0.1\]",
    ),
    (DataConfig, {"num_workers": -1}, "data.num_workers must be at least 0"),
    (DataConfig, {"max_pixels": 0}, "data.max_pixels must be at least 1"),
    (LossConfig, {"class_cost": 0.0, "box_cost": 0.0, "giou_cost": 0.0}, "at least one of class_cost"),
    (LossConfig, {"box_weight": -1.0}, "train.loss.box_weight must be at least 0"),
    (LossConfig, {"no_object_weight": 0.0}, "train.loss.no_object_weight"),
    (LossConfig, {"focal_alpha": 1.5}, "train.loss.focal_alpha"),
    (LossConfig, {"focal_gamma": -1.0}, "train.loss.focal_gamma"),
    (TrainConfig, {"epochs": -1}, "train.epochs must be at least 0, not -1"),
    (TrainConfig, {"max_steps": -1}, "train.max_steps must be at least 0, or null, not -1"),
    *(
        (TrainConfig, {name: 0}, f"train.{name} must be at least 1, not 0")
        for name in ("batch_size", "accumulate", "lr_batch_size", "evaluate_every", "log_every")
    ),
    *(
        (TrainConfig, {name: -1}, f"train.{name} must be at least 0")
        for name in (
            *("lr", "lr_backbone", "lr_sampling_multiplier", "weight_decay", "clip_norm"),
            *("lr_gamma", "warmup_steps", "seed", "checkpoint_every"),
        )
    ),
    (TrainConfig, {"ema_decay": 1.0}, "train.ema_decay must be at least 0 and below 1"),
]
WRONG_TYPES: list[tuple[type, dict[str, Any], str]] = [
    (
        ModelConfig,
        {"attention": "fuzzy"},
        "model.attention must be one of dense, deformable, deformable_own_level, not 'fuzzy'",
    ),
    (ModelConfig, {"num_queries": "many"}, "model.num_queries must be a whole number, not 'many'"),
    (ModelConfig, {"num_queries": 3.5}, "model.num_queries must be a whole number, not 3.5"),
    (ModelConfig, {"num_queries": 3.0}, "model.num_queries must be a whole number, not 3.0"),
    (ModelConfig, {"num_queries": True}, "model.num_queries must be a whole number, not true"),
    (ModelConfig, {"refine_references": "yes"}, "model.refine_references must be true or false"),
    (ModelConfig, {"backbone": "resnet50"}, "model.backbone must be a group of fields, not 'resnet50'"),
    (BackboneConfig, {"name": None}, "model.backbone.name must be a string, not null"),
    (DataConfig, {"mean": (0.5, 0.5)}, "data.mean must be a list of 3 numbers"),
    (DataConfig, {"train_sizes": (480, "x")}, "data.train_sizes must be a list of whole numbers"),
    (DataConfig, {"train_sizes": 480}, "data.train_sizes must be a list of whole numbers, not 480"),
    (TrainConfig, {"lr": float("nan")}, "train.lr must be a number, not nan"),
    (TrainConfig, {"max_steps": "x"}, "train.max_steps must be a whole number or null, not 'x'"),
    (LossConfig, {"class_cost": None}, "train.loss.class_cost must be a number, not null"),
    (RunConfig, {"recipe": 3}, "recipe must be a string, not 3"),
    (
        RunConfig,
        {"train": TrainConfig(look_forward_twice=True)},
        "train.look_forward_twice .* set model.refine_references to true",
    ),
    (
        RunConfig,
        {
            "model": ModelConfig(classification="softmax"),
            "train": TrainConfig(loss=LossConfig(classification_loss="mal")),
        },
        "train.loss.classification_loss is mal.* set model.classification to sigmoid_focal",
    ),
    (
        RunConfig,
        {
            "model": ModelConfig(classification="softmax"),
            "train": TrainConfig(routes=RouteConfig(no_self_attention=1.0)),
        },
        "train.routes needs .* set model.classification to sigmoid_focal",
    ),
    (
        RunConfig,
        {
            "model": ModelConfig(classification="softmax"),
            "train": TrainConfig(loss=LossConfig(object_repeats=2)),
        },
        "train.loss.object_repeats needs .* set model.classification to sigmoid_focal",
    ),
    (
        RunConfig,
        {"train": TrainConfig(routes=RouteConfig(denoising=1.0))},
        "train.routes.denoising needs .* set model.queries to mixed or proposals",
    ),
    (RouteConfig, {"instructed": -1.0}, "train.routes.instructed must be at least 0"),
    (RouteConfig, {"iou_share": 1.5}, "train.routes.iou_share must be from 0 to 1"),
    (RouteConfig, {"queries_per_object": 0}, "train.routes.queries_per_object must be at least 1"),
]


def names(values: Any) -> str:
    return "-".join(values) if isinstance(values, dict) else ""


@pytest.mark.parametrize(("cls", "fields", "words"), REFUSALS + WRONG_TYPES, ids=names)
def test_what_cannot_work_is_refused_when_the_config_is_made(
    cls: type, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        cls(**fields)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_every_combination_of_parts_works_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = models.backbone.build_backbone(BackboneConfig("test_efficientnet"), num_maps=1)
    monkeypatch.setattr(build, "build_backbone", lambda config, num_maps: backbone)
    images = ImageBatch.from_images([torch.rand(3, 32, 32), torch.rand(3, 16, 48)])
    built = 0
    for neck, attention, queries, classification, refine in itertools.product(
        ("projection", "channel_mapper"),
        ("dense", "deformable"),
        ("static", "reference_points", "proposals", "mixed"),
        ("softmax", "sigmoid_focal"),
        (False, True),
    ):
        changes = {
            "neck": neck,
            "attention": attention,
            "queries": queries,
            "classification": classification,
            "refine_references": refine,
            "decoder_norm": refine,
        }
        base = ModelConfig(
            num_classes=3,
            num_queries=2,
            hidden_dim=8,
            num_heads=2,
            num_levels=1,
            encoder_layers=1,
            decoder_layers=2,
            ffn_dim=8,
        )
        try:
            config = dataclasses.replace(base, **changes)
        except UserError:
            continue
        built += 1
        output = build_model(config).eval()(images)
        assert len(output.predictions) == 2
        logits = 3 + (classification == "softmax")
        assert output.predictions[-1].logits.shape == (2, 2, logits), changes
        assert output.predictions[-1].boxes_cxcywh.isfinite().all(), changes
    assert built >= 24


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json_and_yaml(name: str) -> None:
    run = recipe(name)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(run)))) == run
    assert from_dict(RunConfig, yaml.safe_load(yaml.safe_dump(to_dict(run)))) == run


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(0, 1000),
        "train.lr": st.floats(0, 1, allow_nan=False),
        "train.lr_drop_epochs": st.lists(st.integers(0, 100)).map(tuple),
        "train.max_steps": st.none() | st.integers(0, 9),
        "num_queries": st.integers(1, 900),
        "model.backbone.name": st.sampled_from(["resnet18", "resnet101", "tf_efficientnet_lite0"]),
        "strict": st.booleans(),
        "data.augmentation": st.sampled_from(["paper", "light", "none"]),
        "train.loss.box_weight": st.floats(0, 10),
    },
)


# Dilation and deformable stages do not go with every backbone.
ANY_BACKBONE = [name for name in RECIPES if "dc5" not in name and "dcn" not in name]


@given(name=st.sampled_from(ANY_BACKBONE), changes=SETTINGS)
def test_overrides_are_all_kept_and_survive_yaml(name: str, changes: dict[str, Any]) -> None:
    before = recipe(name)
    run = override(before, changes)
    found = {
        "epochs": run.train.epochs,
        "train.lr": run.train.lr,
        "train.lr_drop_epochs": run.train.lr_drop_epochs,
        "train.max_steps": run.train.max_steps,
        "num_queries": run.model.num_queries,
        "model.backbone.name": run.model.backbone.name,
        "strict": run.data.strict,
        "data.augmentation": run.data.augmentation,
        "train.loss.box_weight": run.train.loss.box_weight,
    }
    assert {key: found[key] for key in changes} == changes
    assert override(run, to_dict(before)) == before
    assert from_dict(RunConfig, yaml.safe_load(yaml.safe_dump(to_dict(run)))) == run


def test_the_order_of_overrides_does_not_matter() -> None:
    changes = {"hidden_dim": 100, "num_heads": 10, "neck": "projection", "num_levels": 1}
    runs = {override(RunConfig(), dict(order)) for order in itertools.permutations(changes.items())}
    assert len(runs) == 1
    sizes = {"data": {"image_size": 1500, "max_size": 2000}}
    assert override(RunConfig(), sizes).data.max_size == 2000


def test_yaml_writes_some_numbers_as_text() -> None:
    """YAML 1.1, which PyYAML speaks, takes 1e-4 for a text."""
    values = yaml.safe_load("train: {lr: 1e-4, lr_drop_epochs: [3, 4]}")
    run = override(RunConfig(), values)
    assert run.train.lr == 1e-4
    assert run.train.lr_drop_epochs == (3, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonsense": 1}, r"unknown field nonsense: docs/configuration\.md has the list"),
        ({"epoch": 1}, r"unknown field epoch: did you mean epochs\?"),
        ({"model.nonsense": 1}, "unknown field model.nonsense"),
        ({"model": {"nonsense": 1}}, "unknown field model.nonsense"),
        ({"train.lr.deep": 1}, "unknown field train.lr.deep"),
        ({"model": 3}, "model must be a group of fields, not 3"),
        ({"train.lr": {"a": 1}}, "train.lr must be a number"),
        ({"name": "resnet18", "epochs": "ten"}, "train.epochs must be a whole number, not 'ten'"),
    ],
)
def test_wrong_overrides_are_refused_in_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        override(RunConfig(), changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1: 2", "unknown field 1"),
        ("null: 2", "unknown field None"),
        ("recipe: [a]", "recipe must be a string"),
        ("train: {lr: 1" + "0" * 400 + "}", r"train\.lr must be a number"),
        ("model: " + "[" * 5000 + "]" * 5000, "cannot be read as a YAML"),
        ("model: " + "{a: " * 400 + "}" * 400, "unknown field model"),
        ("model: &m {backbone: *m}", "aliases"),
        ("train: {lr: 1}\ntrain: {epochs: 2}", "train is stated twice"),
        ("data:\n  max_size: 900\n  max_size: 1000", "max_size is stated twice"),
        ("model:\n  encoder_layers: 10000000", r"model\.encoder_layers must be from 0 to 1000"),
    ],
)
def test_odd_config_files_are_refused_in_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as raised:
        read_config(file, RunConfig())
    assert str(file) in str(raised.value)


def test_aliases_that_stand_for_millions_of_values_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    levels = [f"&l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 9)]
    file.write_text(f"data:\n  train_sizes: [&l0 [1, 2], {', '.join(levels)}]\n")
    with pytest.raises(UserError, match="aliases"):
        read_config(file, RunConfig())


@pytest.mark.parametrize("text", ["[" * 5000, "&a [*a]", "1" + "0" * 400])
def test_odd_flags_are_refused_like_any_other_value(text: str) -> None:
    value = from_text(text, float)
    assert not fits(value, float)
    assert not fits(from_text(text, tuple[int, ...]), tuple[int, ...])


def test_unknown_and_missing_fields_of_a_file() -> None:
    with pytest.raises(UserError, match=r"unknown field preprocessing\.sice: known are"):
        from_dict(DataConfig, {"sice": 3}, "preprocessing.")
    assert from_dict(DataConfig, {"image_size": 64, "max_size": 99}) == DataConfig(image_size=64, max_size=99)


# ---------------------------------------------------------------- what every field says of itself


def test_every_field_has_a_help_text_of_its_own() -> None:
    settings = settings_of(RunConfig)
    assert len(settings) == len(flat(to_dict(RunConfig())))
    for setting in settings:
        assert setting.help.endswith("."), setting.path
    texts = Counter(setting.help for setting in settings)
    assert [text for text, count in texts.items() if count > 1] == []


@pytest.mark.parametrize("setting", settings_of(RunConfig), ids=lambda setting: setting.path)
def test_a_field_explains_its_choices_and_its_default_is_in_range(setting: Setting) -> None:
    choices = get_args(setting.hint) if get_origin(setting.hint) is Literal else ()
    assert [choice for choice in choices if f"`{choice}`" not in setting.help] == []
    default = setting.of(RunConfig())
    assert fits(default, setting.hint)
    assert from_text(written(default), setting.hint) == default


def flat(values: dict[str, Any]) -> list[Any]:
    return [
        leaf for value in values.values() for leaf in (flat(value) if isinstance(value, dict) else [value])
    ]


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("12", int, 12),
        ("12", float, 12.0),
        ("1e-4", float, 1e-4),
        ("1e-4", float | None, 1e-4),
        ("null", int | None, None),
        ("null", str | None, None),
        ("null", str, "null"),
        ("2024", str, "2024"),
        ("weights #1.pth", str | None, "weights #1.pth"),
        ("true", bool, True),
        ("false", bool, False),
        ("[480, 512]", tuple[int, ...], (480, 512)),
        ("[1e-1,0.5,1]", tuple[float, float, float], (0.1, 0.5, 1.0)),
        ("[]", tuple[int, ...], ()),
        ("none", Literal["none", "sqrt"], "none"),
        ("[1", int, "[1"),
        ("2024-99-99", int, "2024-99-99"),
    ],
)
def test_values_are_read_as_a_person_types_them(text: str, hint: Any, value: Any) -> None:
    found = from_text(text, hint)
    assert found == value
    assert type(found) is type(value)


def test_numbers_are_written_as_a_person_types_them() -> None:
    values = (2.0, 0.5, 2e-5, 10**8, None, True, (1, 2.5), "imagenet")
    assert [written(value) for value in values] == [
        *("2", "0.5", "2e-05", "100000000", "null", "true", "[1, 2.5]", "imagenet")
    ]
