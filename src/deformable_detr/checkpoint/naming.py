"""The names of DETR's and Deformable DETR's tensors in other projects.

There is a `Naming` for each architecture in each project. "Our" names are those of this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..config import ModelConfig
from .correspondence import Correspondence


@dataclass(frozen=True)
class Naming:
    """The names of one architecture in one project.

    Attributes:
        modules: the project's module paths by our module paths, with `#` for a number. If several of our
            paths match a name, the longest one applies.
        backbone: the prefix before torchvision's names of the backbone's tensors.
        queries: the name of the tensor of the learned queries. This tensor joins positions and content in
            one-stage models of Deformable DETR. It contains only the positions in DETR, and only the content
            in `mixed` models.
        class_head, box_head: the project's paths of the output layers.
        numbered_heads: True if the project stores one head per layer, even if all heads are the same.
        decoder: the prefix under which the heads that are used inside the decoder are stored a second time.
        splits_attention: True if the query, key and value projections of dense attention are three tensors;
            in our models, they are one tensor.
    """

    modules: Mapping[str, str]
    backbone: str
    queries: str
    class_head: str
    box_head: str
    numbered_heads: bool
    decoder: str
    splits_attention: bool

    def correspondences(self, config: ModelConfig, names: Iterable[str]) -> Iterator[Correspondence]:
        """Yield the correspondences for the tensors `names` of our model with the configuration `config`."""
        for name in names:
            if name == "queries.content" and config.queries == "mixed":
                yield Correspondence((name,), ((self.queries,),))
            elif name == "queries.content":
                continue  # joined with the positions
            elif name == "queries.positions":
                content = ("queries.content",) if config.queries == "reference_points" else ()
                yield Correspondence((name, *content), ((self.queries,),), dim=1)
            elif name.startswith("backbone."):
                yield Correspondence((name,), ((self.backbone + torchvision_key(name),),))
            elif name.startswith(("decoder.heads.", "queries.head.")):
                yield Correspondence((name,), (self._head_names(config, name),))
            elif self.splits_attention and ".in_proj_" in name:
                attention, leaf = self.rename(name).rsplit(".in_proj_", 1)
                yield Correspondence((name,), tuple((f"{attention}.{part}_proj.{leaf}",) for part in "qkv"))
            else:
                yield Correspondence((name,), ((self.rename(name),),))

    def rename(self, name: str) -> str:
        """Return the project's name for our tensor `name` according to `modules`.

        Raises:
            KeyError: if no module path in `modules` matches.
        """
        parts = name.split(".")
        generic = ["#" if part.isdigit() else part for part in parts]
        for length in range(len(parts), 0, -1):
            template = self.modules.get(".".join(generic[:length]))
            if template is not None:
                numbers = (part for part in parts if part.isdigit())
                filled = [next(numbers) if part == "#" else part for part in template.split(".")]
                return ".".join([*filled, *parts[length:]])
        raise KeyError(name)

    def _head_names(self, config: ModelConfig, name: str) -> tuple[str, ...]:
        """Return all of the project's names for our tensor `name` of a prediction head.

        The index of the proposals' head follows the indices of the decoder's heads.
        """
        if name.startswith("queries.head."):
            index, rest = config.decoder_layers, name.removeprefix("queries.head.")
        else:
            number, rest = name.removeprefix("decoder.heads.").split(".", 1)
            index = int(number)
        part, leaf = rest.split(".", 1)
        if part == "box_head":
            number, leaf = leaf.split(".")
            leaf = f"layers.{int(number) // 2}.{leaf}"  # their numbers do not count the ReLUs
        kind = self.box_head if part == "box_head" else self.class_head
        if not self.numbered_heads:
            return (f"{kind}.{leaf}",)
        if not config.refine_references:
            return tuple(f"{kind}.{layer}.{leaf}" for layer in range(config.decoder_layers))
        own = f"{kind}.{index}.{leaf}"
        if part == "box_head" or config.two_stage:
            return (own, f"{self.decoder}.{own}")
        return (own,)


def torchvision_key(name: str) -> str:
    """Translate our name of a ResNet's tensor, which starts with `backbone.`, to torchvision's name.

    Except for this prefix, the function is the inverse of `models.backbone.resnet_key`. For example,
    `backbone.stages.1.0.conv1.weight` becomes `layer2.0.conv1.weight`.
    """
    _, part, index, rest = name.split(".", 3)
    if part == "stages":
        return f"layer{int(index) + 1}.{rest}"
    return f"{('conv1', 'bn1')[int(index)]}.{rest}"
