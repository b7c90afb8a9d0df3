"""Mixed queries: positions from the first stage's boxes, content learned by rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deformable_detr.models import DetectionModel, build_model
from deformable_detr.models.queries import BestProposals, MixedQueries, ProposalQueries, with_best_proposals
from deformable_detr.structures import FeatureMemory, ImageBatch
from tests.support.small_models import randomise, small_config

IMAGES = ImageBatch.from_images([torch.randn(3, 64, 80), torch.randn(3, 48, 96)])


def small_plus(**changes: object) -> DetectionModel:
    model = build_model(small_config("deformable_detr_r50_plus", **changes))
    randomise(model)
    return model.eval()


def memory_of(model: DetectionModel) -> FeatureMemory:
    with torch.no_grad():
        memory: FeatureMemory = model.encoder(model.embed(IMAGES))
    return memory


def test_the_i_th_best_proposal_has_the_i_th_row_of_the_content() -> None:
    model = small_plus()
    assert isinstance(model.queries, MixedQueries)
    queries = model.queries(memory_of(model))
    assert queries.proposals is not None
    assert queries.tokens is not None
    objectness = queries.proposals.logits[..., 0].gather(1, queries.tokens)
    assert (objectness.diff(dim=1) <= 0).all()
    for content in queries.content:
        assert torch.equal(content, model.queries.content)


def test_positions_are_those_of_proposals_without_learned_content() -> None:
    model = small_plus()
    plain = build_model(small_config("deformable_detr_r50_plus", queries="proposals")).queries
    state = {name: value for name, value in model.queries.state_dict().items() if name != "content"}
    plain.load_state_dict(state)
    memory = memory_of(model)
    mixed, proposed = model.queries(memory), plain(memory)
    assert torch.equal(mixed.positions, proposed.positions)
    assert torch.equal(mixed.references, proposed.references)
    assert not torch.equal(mixed.content, proposed.content)


def test_fewer_tokens_than_queries_use_the_first_rows() -> None:
    model = small_plus(num_queries=500)
    queries = model.queries(memory_of(model))
    assert queries.content.shape[1] < 500
    assert isinstance(model.queries, MixedQueries)
    assert torch.equal(queries.content[0], model.queries.content[: queries.content.shape[1]])


@pytest.mark.parametrize("name", ["deformable_detr_r50_plus", "deformable_detr_r50_two_stage"])
def test_the_best_proposals_alone_are_the_same_queries(name: str) -> None:
    model = build_model(small_config(name))
    randomise(model)
    memory = memory_of(model.eval())
    fast = with_best_proposals(model.queries)
    assert isinstance(fast, BestProposals)
    for field in ("content", "positions", "references", "tokens"):
        found, wanted = (getattr(queries(memory), field) for queries in (fast, model.queries))
        torch.testing.assert_close(found, wanted)


def test_queries_that_choose_proposals_otherwise_stay_as_they_are() -> None:
    class Worst(ProposalQueries):
        def forward(self, memory: FeatureMemory):  # type: ignore[no-untyped-def]
            return super().forward(replace(memory, tokens=-memory.tokens))

    model = small_plus()
    assert isinstance(model.queries, MixedQueries)
    worst = Worst(7, 32, model.queries.head, mask_invalid=False)
    assert with_best_proposals(worst) is worst
