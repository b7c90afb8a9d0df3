"""`ops.patch` on every architecture of transformers with this operator, and on the habits of other packages.

The models are small and offline. Their weights are random, so that signals have about unit size everywhere
and what the operator computes can be seen in the logits.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deformable_detr import ops
from tests.support.oracles import ms_deform_attn_oracle

# ---- The architectures ---------------------------------------------------------------------------

RESNET = {"layer_type": "basic", "depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "embedding_size": 8}
ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]
LAST_STAGES = ALL_STAGES[1:]


def swin(stages: list[str]) -> transformers.SwinConfig:
    return transformers.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1, 2, 2, 4], window_size=4, image_size=64, out_features=stages
    )


def detr_sizes(**more: Any) -> dict[str, Any]:
    return {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 9,
        "num_labels": 5,
        **more,
    }


def rt_detr_sizes(stages: list[str] = LAST_STAGES, **more: Any) -> dict[str, Any]:
    return detr_sizes(
        backbone_config=transformers.RTDetrResNetConfig(**RESNET, out_features=stages),
        encoder_layers=1,
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32],
        decoder_in_channels=[32, 32, 32],
        num_denoising=0,
        **more,
    )


def detr_with_text() -> dict[str, Any]:
    text = transformers.BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return detr_sizes(backbone_config=swin(LAST_STAGES), text_config=text, max_text_len=16)


def segmenter_sizes(**more: Any) -> dict[str, Any]:
    return {
        "backbone_config": swin(ALL_STAGES),
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_attention_heads": 4,
        "num_queries": 9,
        "num_labels": 5,
        **more,
    }


def vit_detr_sizes(backbone: Any) -> dict[str, Any]:
    return {
        "backbone_config": backbone,
        "d_model": 32,
        "decoder_ffn_dim": 32,
        "decoder_layers": 2,
        "decoder_self_attention_heads": 4,
        "decoder_cross_attention_heads": 4,
        "num_queries": 9,
        "num_labels": 5,
        "group_detr": 1,
    }


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "out_features": ["stage2"],
}


@dataclass(frozen=True)
class Architecture:
    """`kind`: the model class is `config` with this in place of "Config". `count`: of its operators."""

    config: str
    kind: str
    count: int
    options: Callable[[], dict[str, Any]]
    inputs: Callable[[], dict[str, Tensor]] = dict
    size: tuple[int, int] = (64, 96)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options())
        model = getattr(transformers, self.config.replace("Config", self.kind))(config).eval()
        return perturbed(model)

    def example(self) -> dict[str, Tensor]:
        pixels = torch.randn(2, 3, *self.size, generator=torch.Generator().manual_seed(3))
        return {"pixel_values": pixels, **self.inputs()}


def perturbed(model: nn.Module) -> nn.Module:
    """Offsets of about a pixel; matrices and norms that keep signals at unit size."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sampling_offsets.bias"):
                parameter.normal_(0.0, 1.0, generator=generator)
            elif parameter.ndim > 1:
                fan_in = parameter.numel() / len(parameter)
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            elif name.endswith("weight"):  # of a norm
                parameter.normal_(1.0, 0.1, generator=generator)
    return model


TEXT = {"input_ids": torch.tensor([[101, 5, 6, 1012, 7, 1012, 102]] * 2)}
OMDET_TEXT = {
    "classes_input_ids": torch.arange(30).view(6, 5),
    "classes_attention_mask": torch.ones(6, 5, dtype=torch.long),
    "tasks_input_ids": torch.arange(10).view(2, 5),
    "tasks_attention_mask": torch.ones(2, 5, dtype=torch.long),
    "classes_structure": torch.tensor([3, 3]),
}

# By transformers' folder of models.
ARCHITECTURES = {
    "deformable_detr": Architecture(
        "DeformableDetrConfig",
        "ForObjectDetection",
        4,
        lambda: detr_sizes(
            backbone_config=transformers.ResNetConfig(**RESNET, out_features=LAST_STAGES), dropout=0.1
        ),
    ),
    "rt_detr": Architecture("RTDetrConfig", "ForObjectDetection", 2, rt_detr_sizes),
    "rt_detr_v2": Architecture("RTDetrV2Config", "ForObjectDetection", 2, rt_detr_sizes),
    "d_fine": Architecture(
        "DFineConfig", "ForObjectDetection", 2, lambda: rt_detr_sizes(decoder_n_points=[3, 2, 4])
    ),
    "deimv2": Architecture(
        "Deimv2Config", "ForObjectDetection", 2, lambda: rt_detr_sizes(decoder_n_points=[3, 2, 4])
    ),
    "grounding_dino": Architecture(
        "GroundingDinoConfig", "ForObjectDetection", 4, detr_with_text, lambda: TEXT
    ),
    "mm_grounding_dino": Architecture(
        "MMGroundingDinoConfig", "ForObjectDetection", 4, detr_with_text, lambda: TEXT
    ),
    "mask2former": Architecture(
        "Mask2FormerConfig",
        "ForUniversalSegmentation",
        2,
        lambda: segmenter_sizes(feature_size=32, mask_feature_size=32),
    ),
    "oneformer": Architecture(
        "OneFormerConfig",
        "ForUniversalSegmentation",
        2,
        lambda: segmenter_sizes(
            conv_dim=32, mask_dim=32, task_seq_len=7, text_encoder_width=32, text_encoder_vocab_size=50
        ),
        lambda: {"task_inputs": torch.arange(14).view(2, 7)},
    ),
    "omdet_turbo": Architecture(
        "OmDetTurboConfig",
        "ForObjectDetection",
        2,
        lambda: {
            "backbone_config": swin(LAST_STAGES),
            "text_config": transformers.CLIPTextConfig(
                vocab_size=99,
                bos_token_id=97,
                eos_token_id=98,
                hidden_size=48,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
            ),
            "apply_layernorm_after_vision_backbone": False,
            "text_projection_in_dim": 48,
            "text_projection_out_dim": 48,
            "class_embed_dim": 48,
            "task_encoder_hidden_dim": 32,
            "num_queries": 9,
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [16, 32, 64],
            "encoder_attention_heads": 4,
            "encoder_dim_feedforward": 32,
            "vision_features_channels": [32, 32, 32],
            "decoder_hidden_dim": 32,
            "decoder_num_heads": 4,
            "decoder_num_layers": 2,
            "decoder_dim_feedforward": 32,
        },
        lambda: OMDET_TEXT,
    ),
    "lw_detr": Architecture(
        "LwDetrConfig",
        "ForObjectDetection",
        2,
        lambda: (
            vit_detr_sizes(
                transformers.LwDetrViTConfig(
                    **VIT, pretrain_image_size=64, num_windows=4, window_block_indices=[0]
                )
            )
            | {"projector_scale_factors": [1.0]}
        ),
        size=(64, 64),
    ),
    "rf_detr": Architecture(
        "RfDetrConfig",
        "ForObjectDetection",
        2,
        lambda: (
            vit_detr_sizes(transformers.RfDetrDinov2Config(**VIT, patch_size=16, num_windows=2))
            | {"intermediate_size": 32}
        ),
        size=(64, 64),
    ),
    "pp_doclayout_v2": Architecture(
        "PPDocLayoutV2Config",
        "ForObjectDetection",
        2,
        lambda: rt_detr_sizes(
            class_thresholds=[0.0] * 5,
            class_order=[0, 1, 2, 3, 4],
            reading_order_config={
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "intermediate_size": 32,
                "coordinate_size": 6,
                "shape_size": 4,
            },
        ),
    ),
    "pp_doclayout_v3": Architecture(
        "PPDocLayoutV3Config",
        "ForObjectDetection",
        2,
        lambda: rt_detr_sizes(ALL_STAGES, x4_feat_dim=8, mask_feature_channels=[8, 8]),
    ),
    "pp_doclayout_v4": Architecture("PPDocLayoutV4Config", "ForObjectDetection", 2, rt_detr_sizes),
}
# One for each place where a model may hold the operator: submodule, attribute, function of the file.
PLACES = (
    ("deformable_detr", "DeformableDetr"),
    ("d_fine", "DFine"),
    ("mask2former", "Mask2FormerPixelDecoderEncoder"),
)


@functools.cache
def built(name: str) -> nn.Module:
    """Shared by the tests; each leaves it unpatched."""
    return ARCHITECTURES[name].build()


@torch.no_grad()
def logits(model: nn.Module, example: dict[str, Tensor]) -> Tensor:
    """Of classes and masks, in one row; -inf, for the end of a shorter text, becomes zero."""
    names = ("logits", "decoder_class_logits", "class_queries_logits", "masks_queries_logits")
    outputs = model(**example)
    return torch.cat([outputs[name].flatten() for name in names if name in outputs]).nan_to_num(neginf=0.0)


class OurCalls(TorchDispatchMode):
    """Counts the calls of our forward operator."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.name() == "deformable_detr::ms_deform_attn"
        return function(*args, **(kwargs or {}))


def seen(calls: int) -> int:
    return calls if ops.native_available() else 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_stay_and_come_from_our_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, model = ARCHITECTURES[name], built(name)
    example = architecture.example()
    before, keys = logits(model, example), list(model.state_dict())

    with ops.patch(model) as handle:
        with OurCalls() as ours:
            patched = logits(model, example)
        assert list(model.state_dict()) == keys
        with monkeypatch.context() as swapped:
            zero = import_module("deformable_detr.ops.patch")
            swapped.setattr(zero, "ms_deform_attn", lambda *args, **kw: 0 * ops.ms_deform_attn(*args, **kw))
            without = logits(model, example)

    assert handle.count == architecture.count
    assert ours.count == seen(architecture.count)
    torch.testing.assert_close(patched, before, rtol=0.0, atol=5e-5)
    assert (without - before).abs().max() > 0.05, "the operator does not matter in this test"
    assert torch.equal(logits(model, example), before)


def test_no_architecture_of_transformers_is_forgotten() -> None:
    folder = Path(transformers.__file__).parent / "models"
    found = {
        file.parent.name
        for file in folder.glob("*/modeling_*.py")
        if "sampling_locations" in file.read_text(encoding="utf-8")
    }
    assert found == set(ARCHITECTURES)


@pytest.mark.parametrize("name", [folder for folder, _ in PLACES])
def test_gradients_stay(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = copy.deepcopy(built(name)).train()
    example = architecture.example()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(5)  # of dropout
        outputs = model(**example)
        scores = outputs["logits" if "logits" in outputs else "masks_queries_logits"]
        scores.square().mean().backward()
        return {key: each.grad.clone() for key, each in model.named_parameters() if each.grad is not None}

    before = gradients()
    with ops.patch(model):
        patched = gradients()
    assert patched.keys() == before.keys()
    # Together, as some are zero but for rounding; and those alone that only the operator reaches.
    for keys in (list(before), [key for key in before if "sampling_offsets" in key]):
        expected = torch.cat([before[key].flatten() for key in keys])
        error = torch.cat([patched[key].flatten() for key in keys]) - expected
        assert error.norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize(("folder", "prefix"), PLACES)
def test_other_models_and_copies(folder: str, prefix: str) -> None:
    """Another model is unaffected; a deep copy and a pickled one are patched, and use their own weights."""
    layer, arguments = attention_layer(folder, prefix)
    other = copy.deepcopy(layer)
    with ops.patch(layer):
        patched = layer(**arguments)[0]
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    with OurCalls() as ours:
        other(**arguments)
    assert ours.count == 0
    for each in copies:
        with OurCalls() as ours:
            assert torch.equal(each(**arguments)[0], patched)
        assert ours.count == seen(1)
        with pytest.raises(ValueError, match="already patched"):
            ops.patch(each)


def test_under_autocast() -> None:
    model, example = built("deformable_detr"), ARCHITECTURES["deformable_detr"].example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = logits(model, example)
        with ops.patch(model):
            patched = logits(model, example)
    torch.testing.assert_close(patched.float(), before.float(), rtol=0.0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "prefix"), PLACES)
def test_compiles_in_one_graph(folder: str, prefix: str) -> None:
    torch.compiler.reset()
    layer, arguments = attention_layer(folder, prefix)
    with ops.patch(layer), torch.no_grad():
        expected = layer(**arguments)[0]
        assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(**arguments)[0], expected)


@pytest.mark.slow
def test_compiled_layers_of_one_class_are_not_mixed_up() -> None:
    """torch.compile keeps its results with the code. RT-DETRv2's comes in pieces, the first ones alike."""
    torch.compiler.reset()
    unpatched, arguments = attention_layer("rt_detr_v2", "RTDetrV2")
    patched = [copy.deepcopy(unpatched) for _ in range(2)]
    with ops.patch(nn.ModuleList(patched)) as handle, torch.no_grad():
        assert handle.count == 2
        for each in (unpatched, *patched):
            expected = each(**arguments)[0]
            assert torch.equal(torch.compile(each, backend="eager")(**arguments)[0], expected)


def attention_layer(folder: str, prefix: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """One layer of transformers, two levels, and its arguments."""
    module = import_module(f"transformers.models.{folder}.modeling_{folder}")
    layer_class = getattr(module, f"{prefix}MultiscaleDeformableAttention")
    if folder == "mask2former":
        layer = layer_class(32, num_heads=4, n_levels=2, n_points=3)
    elif folder == "deformable_detr":
        layer = layer_class(
            transformers.DeformableDetrConfig(**detr_sizes(num_feature_levels=2)), num_heads=4, n_points=3
        )
    else:
        config_class = getattr(transformers, f"{prefix}Config")
        layer = layer_class(
            config_class(**rt_detr_sizes(num_feature_levels=2, decoder_n_levels=2, **options))
        )
    one_reference = folder in ("d_fine", "rt_detr_v2")  # for all levels
    generator = torch.Generator().manual_seed(2)
    shapes = [(4, 6), (2, 3)]
    arguments = {
        "hidden_states": torch.randn(2, 7, 32, generator=generator),
        "encoder_hidden_states": torch.randn(2, 30, 32, generator=generator),
        "reference_points": torch.rand(2, 7, 1 if one_reference else 2, 4, generator=generator),
        "spatial_shapes_list": shapes,
    }
    if folder != "mask2former":
        arguments["spatial_shapes"] = torch.tensor(shapes)
    return perturbed(layer).eval(), arguments


# ---- The handle ----------------------------------------------------------------------------------


def test_undo_twice_and_patch_again() -> None:
    layer, arguments = attention_layer("mask2former", "Mask2FormerPixelDecoderEncoder")
    before = layer(**arguments)[0]
    handle = ops.patch(layer)
    with pytest.raises(ValueError, match=r"Mask2Former.* is already patched: undo that first"):
        ops.patch(nn.Sequential(nn.Identity(), nn.Sequential(layer))[1][0])
    handle.undo()
    handle.undo()
    assert torch.equal(layer(**arguments)[0], before)
    assert "forward" not in vars(layer)
    again = ops.patch(layer)
    handle.undo()  # the old handle has nothing to do with the new patch
    with OurCalls() as ours:
        layer(**arguments)
    assert ours.count == seen(1)
    again.undo()


def test_a_failing_block_is_undone_too() -> None:
    layer, _ = attention_layer("deformable_detr", "DeformableDetr")
    with pytest.raises(KeyError), ops.patch(layer):
        raise KeyError
    assert "forward" not in vars(layer.attn)


def test_nothing_to_patch() -> None:
    with pytest.raises(ValueError, match="Sequential has no multi-scale deformable attention to rep"):
        ops.patch(nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(4, 2)))


def test_patched_halves_are_refused_whole() -> None:
    """Nothing is changed where one part is patched already."""
    layers = nn.ModuleList(attention_layer("deformable_detr", "DeformableDetr")[0] for _ in range(2))
    with ops.patch(layers[1]):
        with pytest.raises(ValueError, match=r"1\.attn is already patched"):
            ops.patch(layers)
        assert "forward" not in vars(layers[0].attn)


def test_what_was_put_over_the_patch_is_not_thrown_away() -> None:
    layer, _ = attention_layer("mask2former", "Mask2FormerPixelDecoderEncoder")
    handle = ops.patch(layer)
    ours, hooked = layer.forward, lambda *args, **kwargs: None
    layer.forward = hooked
    with pytest.raises(RuntimeError, match=r"forward was replaced after ops\.patch"):
        handle.undo()
    assert layer.forward is hooked
    layer.forward = ours
    handle.undo()


def test_hooks_that_were_there_before() -> None:
    """An operator without weights gives its hook back; a layer with weights needs its hook."""
    layer, _ = attention_layer("deformable_detr", "DeformableDetr")
    hooked = layer.attn.forward = functools.partial(type(layer.attn).forward, layer.attn)
    ops.patch(layer).undo()
    assert layer.attn.forward is hooked
    layer, _ = attention_layer("mask2former", "Mask2FormerPixelDecoderEncoder")
    layer.forward = functools.partial(type(layer).forward, layer)
    with pytest.raises(ValueError, match="has a replaced forward"):
        ops.patch(layer)


@pytest.mark.parametrize(("folder", "prefix"), [("rt_detr_v2", "RTDetrV2"), ("d_fine", "DFine")])
def test_discrete_sampling_is_refused(folder: str, prefix: str) -> None:
    layer, _ = attention_layer(folder, prefix, decoder_method="discrete")
    with pytest.raises(ValueError, match="samples by the method 'discrete', not bilinearly"):
        ops.patch(nn.Sequential(layer))
    assert "forward" not in vars(layer)


def test_a_method_that_changes_later_is_refused() -> None:
    layer, arguments = attention_layer("d_fine", "DFine")
    with ops.patch(layer):
        layer.decoder_method = "discrete"
        with pytest.raises(ValueError, match="samples by the method 'discrete'"):
            layer(**arguments)


# ---- Habits of other packages --------------------------------------------------------------------
# Written here after their interfaces. As the authors' operator on a CPU, none of them computes anything.

SHAPES = ((4, 5), (2, 3))
TOKENS = 26


class MSDeformAttnFunction(torch.autograd.Function):
    """Of the authors' code and mmcv."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        value_spatial_shapes: Any,
        value_level_start_index: Any,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: Any,
    ) -> None:
        raise NotImplementedError("not implemented on the CPU")


def ms_deform_attn_core_pytorch(
    value: Tensor,
    value_spatial_shapes: Any,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    value_spatial_shapes_hw: Any = None,
) -> Tensor:
    """Of RF-DETR."""
    raise NotImplementedError


def deformable_attention_core_func_v2(
    value: Tensor,
    value_spatial_shapes: Any,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Any,
    method: Any = "default",
) -> Tensor:
    """Of D-FINE."""
    raise NotImplementedError


def deformable_attention_with_depth(
    value: Tensor, spatial_shapes: Any, sampling_locations: Tensor, attention_weights: Tensor, depth: Any
) -> Tensor:
    """Knows more than we do."""
    raise NotImplementedError


class AuthorsAttention(nn.Module):
    """Shapes as a tensor, a step, a start of each level."""

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
        shapes = torch.tensor(SHAPES, device=value.device)
        try:
            return MSDeformAttnFunction.apply(value, shapes, torch.tensor([0, 20]), locations, weights, 64)
        except NotImplementedError:
            return ms_deform_attn_core_pytorch(value, shapes, locations, weights)


class RFDetrAttention(nn.Module):
    """Channels before tokens, weights with one axis for levels and points."""

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
        return ms_deform_attn_core_pytorch(
            value.permute(0, 2, 3, 1), None, locations, weights.flatten(3), value_spatial_shapes_hw=SHAPES
        )


class RFDetrExport(nn.Module):
    """The same with one axis in the locations too."""

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
        return ms_deform_attn_core_pytorch(
            value.permute(0, 2, 3, 1), torch.tensor(SHAPES), locations.flatten(3, 4), weights.flatten(3)
        )


class DFineAttention(nn.Module):
    """A value for each level, numbers of points for each level, and the operator as a partial function."""

    def __init__(self, points: list[int], method: str = "default") -> None:
        super().__init__()
        self.points = points
        self.core = functools.partial(deformable_attention_core_func_v2, method=method)

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
        levels = value.permute(0, 2, 3, 1).split([20, 6], dim=-1)
        return self.core(levels, SHAPES, locations, weights, self.points)


def deform_discrete(
    value: Tensor,
    value_spatial_shapes: Any,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Any,
    method: Any = "discrete",
) -> Tensor:
    """Another default than D-FINE's."""
    raise NotImplementedError


class DiscreteAttention(nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
        return deform_discrete(value, SHAPES, locations, weights, [3, 2])


class DepthAttention(nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
        return deformable_attention_with_depth(value, SHAPES, locations, weights, depth=1.0)


def lookalike_inputs(
    points: tuple[int, ...] | None = None, heads: int = 3, dim: int = 7
) -> tuple[Tensor, ...]:
    """value (B, S, M, D), locations and weights, with axes (L, K) or, ragged, P."""
    generator = torch.Generator().manual_seed(4)
    axes = (2, 4) if points is None else (sum(points),)
    value = torch.randn(2, TOKENS, heads, dim, generator=generator)
    locations = torch.rand(2, 5, heads, *axes, 2, generator=generator) * 1.4 - 0.2
    return value, locations, torch.rand(2, 5, heads, *axes, generator=generator)


@pytest.mark.parametrize("attention", [AuthorsAttention, RFDetrAttention, RFDetrExport])
def test_other_packages(attention: type[nn.Module]) -> None:
    value, locations, weights = lookalike_inputs()
    model = nn.Sequential(attention())
    with ops.patch(model) as handle:
        output = model[0](value, locations, weights)
    assert handle.count == 1
    expected = ms_deform_attn_oracle(value, SHAPES, locations.flatten(3, 4), weights.flatten(3), (4, 4))
    torch.testing.assert_close(output.double(), expected, rtol=0.0, atol=1e-5)
    with pytest.raises(NotImplementedError):
        model[0](value, locations, weights)


def test_dfines_own_package() -> None:
    value, locations, weights = lookalike_inputs((3, 2))
    layer = DFineAttention([3, 2])
    core = layer.core
    with ops.patch(layer) as handle:
        output = pickle.loads(pickle.dumps(layer))(value, locations, weights)
        with pytest.raises(ValueError, match="already patched"):
            ops.patch(layer)
    assert handle.count == 1
    assert layer.core is core
    expected = ms_deform_attn_oracle(value, SHAPES, locations, weights, (3, 2))
    torch.testing.assert_close(output.double(), expected, rtol=0.0, atol=1e-5)
    with pytest.raises(ValueError, match="'discrete'"):
        ops.patch(DFineAttention([3, 2], method="discrete"))


def test_an_unknown_argument_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="has no multi-scale deformable attention"):
        ops.patch(DepthAttention())


def test_their_defaults_are_kept() -> None:
    layer = DiscreteAttention()
    with ops.patch(layer), pytest.raises(ValueError, match="samples by the method 'discrete'"):
        layer(*lookalike_inputs((3, 2)))


def test_layouts_that_cannot_be_told_apart_or_do_not_fit() -> None:
    layer = RFDetrAttention()
    with ops.patch(layer):
        with pytest.raises(ValueError, match="S = 26 tokens and M = 26 heads, and it matches both"):
            layer(*lookalike_inputs(heads=TOKENS, dim=TOKENS))
        value, locations, weights = lookalike_inputs()
        with pytest.raises(ValueError, match="matches neither"):
            layer(value[:, 1:], locations, weights)


def test_other_devices() -> None:
    inputs = [each.to("meta") for each in lookalike_inputs()]
    layer = RFDetrAttention()
    with ops.patch(layer):
        output = layer(*inputs)
    assert output.shape == (2, 5, 21)
    assert output.device.type == "meta"
