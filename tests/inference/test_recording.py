"""What is recorded is what attention used: fed to the reference operator, it gives the attention's output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deformable_detr.config import RECIPES, BackboneConfig, ModelConfig
from deformable_detr.inference.recording import DenseLayer, SampledLayer, record
from deformable_detr.models import DetectionModel, build_model
from deformable_detr.models.encoder import token_centres
from deformable_detr.ops.reference import ms_deform_attn_reference
from deformable_detr.structures import ImageBatch
from tests.support.small_models import randomise, small_config
from tests.support.tiny import as_detr, tiny_config

PLACES = torch.tensor([[0.1, 0.2], [0.5, 0.5], [1.0, 1.0], [0.0, 0.0]])


def small(recipe_name: str) -> ModelConfig:
    return replace(
        small_config(recipe_name, num_queries=5, num_heads=4), backbone=BackboneConfig("test_efficientnet")
    )


# one recipe of those that differ in their backbone alone
DEFORMABLE = {
    repr(small(name)): name for name, recipe in RECIPES.items() if recipe().model.attention == "deformable"
}.values()


def batch() -> ImageBatch:
    """Two pictures, the first padded at the right and below."""
    torch.manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, 64, 96), torch.randn(3, 96, 128)])


def inputs_and_outputs(model: DetectionModel, attention: nn.Module) -> dict[str, list[Tensor]]:
    """What goes through the parts of one attention while the model runs."""
    kept: dict[str, list[Tensor]] = {}
    for name, part in attention.named_children():

        def keep(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            kept[name] = [arguments[0], output]

        part.register_forward_hook(keep)
    return kept


@pytest.mark.parametrize("recipe_name", DEFORMABLE)
def test_records_reproduce_the_output_of_deformable_attention(recipe_name: str) -> None:
    model = randomise(build_model(small(recipe_name))).eval()
    assert isinstance(model, DetectionModel)
    decoder = [inputs_and_outputs(model, layer.cross_attention) for layer in model.decoder.layers]
    encoder = inputs_and_outputs(model, model.encoder.layers[0].attention)
    recording = record(model, batch(), PLACES)

    for kept, layer in zip([*decoder, encoder], [*recording.decoder, recording.encoder[0]], strict=True):
        assert isinstance(layer, SampledLayer)
        B, R, M, L, K, _ = layer.locations.shape
        value = kept["value_projection"][1].masked_fill(recording.memory.mask[..., None], 0.0)
        found = ms_deform_attn_reference(
            value.unflatten(-1, (M, -1)),
            recording.memory.spatial_shapes,
            layer.locations.reshape(B, R, M, L * K, 2),
            layer.weights.reshape(B, R, M, L * K),
            (K,) * L,
        )
        expected = kept["output_projection"][0]
        if kept is encoder:  # recorded at some tokens only
            rows = recording.tokens.flatten(1)
            expected = torch.stack([image[tokens] for image, tokens in zip(expected, rows, strict=True)])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.weights.sum((-2, -1)), torch.ones(B, R, M))


def test_records_reproduce_the_output_of_dense_attention() -> None:
    model = randomise(build_model(as_detr(tiny_config()).model)).eval()
    assert isinstance(model, DetectionModel)
    attention = model.decoder.layers[1].cross_attention
    outputs: list[Tensor] = []
    attention.register_forward_hook(lambda _, __, output: outputs.append(output))
    recording = record(model, batch(), PLACES)

    layer, inner, memory = recording.decoder[1], attention.attention, recording.memory
    assert isinstance(layer, DenseLayer)
    dim = inner.embed_dim
    value = nn.functional.linear(memory.tokens, inner.in_proj_weight[-dim:], inner.in_proj_bias[-dim:])
    value = value.unflatten(-1, (inner.num_heads, -1))  # (B, S, M, D)
    found = inner.out_proj(torch.einsum("bqms,bsmd->bqmd", layer.weights, value).flatten(2))
    torch.testing.assert_close(found, outputs[0], rtol=1e-5, atol=1e-5)
    assert layer.weights.masked_select(memory.mask[:, None, None]).eq(0).all()  # nothing in the padding
    assert recording.encoder[0].weights.shape == (2, len(PLACES), 4, memory.tokens.shape[1])


def test_records_reproduce_the_output_of_attention_to_the_own_level() -> None:
    model = randomise(build_model(tiny_config(attention="deformable_own_level").model)).eval()
    assert isinstance(model, DetectionModel)
    outer = [model.decoder.layers[1].cross_attention, model.encoder.layers[0].attention]
    kept: dict[int, list[Tensor]] = {0: [], 1: []}  # what the operator gives, level by level
    for number, attention in enumerate(outer):

        def keep(_: nn.Module, arguments: tuple[Tensor, ...], __: Tensor, number: int = number) -> None:
            kept[number].append(arguments[0])

        attention.attention.output_projection.register_forward_hook(keep)
    recording = record(model, batch(), PLACES)
    layers = [recording.decoder[1], recording.encoder[0]]
    memories = [recording.memory, model.embed(batch())]  # what the layers read
    for number, (layer, memory, attention) in enumerate(zip(layers, memories, outer, strict=True)):
        assert isinstance(layer, SampledLayer)
        B, R, M, L, K, _ = layer.locations.shape
        assert ((layer.weights.sum(-1) > 0).sum(-1) == 1).all()  # one level of each head
        value = attention.attention.value_projection(memory.tokens).masked_fill(memory.mask[..., None], 0.0)
        found = ms_deform_attn_reference(
            value.unflatten(-1, (M, -1)),
            memory.spatial_shapes,
            layer.locations.reshape(B, R, M, L * K, 2),
            layer.weights.reshape(B, R, M, L * K),
            (K,) * L,
        )
        expected = torch.cat(kept[number], dim=1)
        if number == 1:
            rows = recording.tokens.flatten(1)
            expected = torch.stack([image[tokens] for image, tokens in zip(expected, rows, strict=True)])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_recording_changes_nothing_and_leaves_nothing_behind() -> None:
    model = randomise(build_model(tiny_config().model)).eval()
    assert isinstance(model, DetectionModel)
    expected = model(batch())
    model.train()
    recording = record(model, batch(), PLACES)
    assert model.training
    for found, wanted in zip(recording.output.predictions, expected.predictions, strict=True):
        torch.testing.assert_close(found.boxes_cxcywh, wanted.boxes_cxcywh, rtol=0, atol=0)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=0)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_failing_model_is_left_without_hooks() -> None:
    model = build_model(tiny_config().model)
    with pytest.raises(RuntimeError):
        record(model, ImageBatch(torch.zeros(1, 4, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tokens_cover_their_places() -> None:
    model = build_model(tiny_config().model)
    recording = record(model, batch(), PLACES)
    memory, start = recording.memory, 0
    centres = token_centres(memory)  # fractions of the unpadded images
    for level, (height, width) in enumerate(memory.spatial_shapes):
        tokens = recording.tokens[:, :, level]
        assert ((tokens >= start) & (tokens < start + height * width)).all()
        start += height * width
        assert not memory.mask.gather(1, tokens).any()
        for image in range(2):
            cell = 1 / (memory.valid_ratios[image, level] * torch.tensor([width, height]))
            distance = (centres[image, tokens[image]] - PLACES).abs()
            assert (distance <= cell / 2 + 1e-6).all()


def test_locations_are_fractions_of_the_unpadded_image() -> None:
    # Without offsets the encoder samples at the tokens' own centres, which the pixels' strides tell.
    model = build_model(tiny_config().model)
    attention = model.encoder.layers[0].attention
    nn.init.zeros_(attention.sampling_offsets.bias)
    pictures = ImageBatch.from_images([torch.zeros(3, 64, 96), torch.zeros(3, 128, 128)])
    recording = record(model, pictures, torch.tensor([[0.3, 0.6]]))
    layer = recording.encoder[0]
    assert isinstance(layer, SampledLayer)
    found = layer.of_image(recording.memory.valid_ratios)
    for image, size in enumerate([(96, 64), (128, 128)]):  # (W, H)
        for level, stride in enumerate((8, 16, 32)):
            place = torch.tensor([0.3, 0.6]) * torch.tensor(size)
            centre = ((place // stride) + 0.5) * stride / torch.tensor(size)
            expected = centre.expand_as(found[image, level])
            torch.testing.assert_close(found[image, level], expected, rtol=0, atol=1e-6)
