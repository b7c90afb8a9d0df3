"""Files of H-DETR, DAC-DETR and Mr. DETR: the plain model comes out, and the tensors of training are named.

The names are those of the projects' code, written out here. Outputs of their code on random weights were
compared outside this repository (docs/convert.md).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deformable_detr.checkpoint import Checkpoint, authors, load
from deformable_detr.checkpoint.authors_plus import TensorsLeftOut
from deformable_detr.checkpoint.correspondence import to_theirs
from deformable_detr.errors import UserError
from tests.support.small_models import assert_same_weights, random_checkpoint, small_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def plus() -> Checkpoint:
    return random_checkpoint(small_config("deformable_detr_r50_plus", num_classes=80, hidden_dim=256))


def under_the_authors_names(checkpoint: Checkpoint) -> dict[str, Tensor]:
    state = checkpoint.model.state_dict()
    naming = authors.NAMINGS["deformable_detr"]
    return to_theirs(state, naming.correspondences(checkpoint.config, state))


def under_detrex_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the authors' tensors as Mr. DETR's code names them, and add what only its training has."""
    renamed = {}
    for name, tensor in state.items():
        part = name.replace("backbone.0.body.conv1", "backbone.stem.conv1")
        part = part.replace("backbone.0.body.bn1", "backbone.stem.conv1.norm")
        for stage in (1, 2, 3, 4):
            part = part.replace(f"backbone.0.body.layer{stage}.", f"backbone.res{stage + 1}.")
        if part.startswith("backbone."):
            part = re.sub(r"\bbn([123])\b", r"conv\1.norm", part)
            part = part.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for level, place in enumerate(("convs.0", "convs.1", "convs.2", "extra_convs.0")):
            part = part.replace(f"input_proj.{level}.0.", f"neck.{place}.conv.")
            part = part.replace(f"input_proj.{level}.1.", f"neck.{place}.norm.")
        part = part.replace("level_embed", "level_embeds").replace("query_embed.", "query_embedding.")
        if "encoder.layers" in part:
            changes = {"self_attn": "attentions.0", "norm1": "norms.0", "norm2": "norms.1"}
            changes |= {"linear1": "ffns.0.layers.0.0", "linear2": "ffns.0.layers.1"}
        elif "decoder.layers" in part:
            changes = {"self_attn": "attentions.0.attn", "cross_attn": "attentions.1"}
            changes |= {"norm1": "norms.0", "norm2": "attentions.0.norm_o2o", "norm3": "norms.1"}
            changes |= {"linear1": "ffns.0.layers.0.linear.linear", "linear2": "ffns.0.layers.1.linear"}
        else:
            changes = {}
        for theirs, detrex in changes.items():
            part = part.replace(f".{theirs}.", f".{detrex}.")
        renamed[part] = tensor
    for layer in (0, 1):
        prefix = f"transformer.decoder.layers.{layer}"
        for table in ("instruction_o2m", "instruction_o2m_pos"):
            renamed[f"{prefix}.attentions.0.{table}.weight"] = torch.zeros(10, 256)
        renamed[f"{prefix}.attentions.0.norm_o2m.weight"] = torch.zeros(256)
        renamed[f"{prefix}.ffns.0.layers.0.linear.linear_sep.weight"] = torch.zeros(48, 256)
        renamed[f"{prefix}.ffns.0.layers.1.linear_sep.bias"] = torch.zeros(256)
    renamed["transformer.decoder.class_embed_o2m_encoder.weight"] = torch.zeros(80, 256)
    renamed["transformer.decoder.bbox_embed_enc_o2m.layers.0.bias"] = torch.zeros(256)
    return renamed


def test_h_detr_loses_the_rows_of_its_one_to_many_queries(plus: Checkpoint, tmp_path: Path) -> None:
    state = under_the_authors_names(plus)
    content = state["query_embed.weight"]
    assert content.shape == (7, 256)
    state["query_embed.weight"] = torch.cat([content, torch.ones(11, 256)])
    torch.save({"model": state, "args": argparse.Namespace(num_queries_one2one=7)}, tmp_path / "h.pth")
    with pytest.warns(TensorsLeftOut, match=r"rows 8 to 18 of query_embed\.weight"):
        loaded = load(tmp_path / "h.pth")
    assert loaded.config.queries == "mixed"
    assert loaded.config.num_queries == 7
    assert loaded.recipe == "deformable_detr_r50_plus"
    assert_same_weights(loaded.model, plus.model)


def test_published_rows_without_args_are_300_and_1500_more(plus: Checkpoint, tmp_path: Path) -> None:
    state = under_the_authors_names(plus)
    state["query_embed.weight"] = torch.zeros(1800, 256)
    torch.save({"model": state}, tmp_path / "h.pth")
    with pytest.warns(TensorsLeftOut, match="rows 301 to 1800"):
        assert load(tmp_path / "h.pth").config.num_queries == 300


def test_dac_detr_loses_its_table_of_labels(plus: Checkpoint, tmp_path: Path) -> None:
    state = {**under_the_authors_names(plus), "label_enc.weight": torch.zeros(92, 256)}
    torch.save({"model": state}, tmp_path / "dac.pth")
    with pytest.warns(TensorsLeftOut, match=r"1 tensors .*label_enc\.weight"):
        loaded = load(tmp_path / "dac.pth")
    assert_same_weights(loaded.model, plus.model)


def test_mr_detr_is_read_from_detrex_names(plus: Checkpoint, tmp_path: Path) -> None:
    state = under_detrex_names(under_the_authors_names(plus))
    torch.save({"model": state, "iteration": 89_999}, tmp_path / "mr.pth")
    with pytest.warns(TensorsLeftOut, match=r"12 tensors .*instruction_o2m"):
        loaded = load(tmp_path / "mr.pth")
    assert loaded.config.queries == "mixed"
    assert loaded.config.num_queries == 7
    assert_same_weights(loaded.model, plus.model)
    classes = loaded.classes
    assert (len(classes), classes.names[0], classes.category_ids[79]) == (80, "person", 90)


def test_unknown_tensors_are_still_refused(plus: Checkpoint, tmp_path: Path) -> None:
    state = {**under_the_authors_names(plus), "relation_head.weight": torch.zeros(3, 3)}
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"relation_head\.weight"):
        load(tmp_path / "other.pth")
