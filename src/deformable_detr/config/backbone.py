"""The settings of the backbone."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check, require
from .settings import setting

TORCHVISION_RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
LITE0 = "tf_efficientnet_lite0"  # timm's name


@dataclass(frozen=True)
class BackboneConfig:
    """The network that computes the features.

    Raises:
        UserError: if a setting has a wrong type or is out of range, or settings contradict each other.
    """

    name: str = setting(
        "resnet50",
        "A ResNet as in torchvision (resnet18/34/50/101, resnext101_32x8d/64x4d), `tf_efficientnet_lite0`, "
        "or any other timm model that returns feature maps, by timm's name.",
    )
    dilation: bool = setting(
        False,
        "DC5: the last stage keeps stride 16 and dilates its convolutions by 2. This works for ResNets with "
        "bottlenecks, EfficientNet-Lite0 and the timm models that support it.",
    )
    trainable_layers: int = setting(
        3,
        "The number of stages that are trained, counted from the last one. With the paper's 3, the stem and "
        "the first stage of a ResNet are frozen. Batch norm is always frozen.",
        minimum=0,
        maximum=5,
    )
    deformable_stages: tuple[int, ...] = setting(
        (),
        "Stages (2 to 5, for C2 to C5) whose 3x3 convolutions learn where to sample (ResNets only). "
        '"ResNeXt-101 + DCN" in the paper\'s Table 3 is a resnext101 with stages 3, 4 and 5.',
        minimum=2,
        maximum=5,
    )

    def __post_init__(self) -> None:
        check(self, "model.backbone.")
        require(bool(self.name), "model.backbone.name is empty: name a ResNet or a timm model.")
        require(
            ":" not in self.name and "/" not in self.name,
            f"model.backbone.name must be a name in timm's list, not the address {self.name!r:.80}, from "
            "which timm would load files.",
        )
        require(
            not (self.dilation and self.name in ("resnet18", "resnet34")),
            f"model.backbone.dilation needs bottleneck blocks (resnet50 or larger), {self.name} has none.",
        )
        stages = self.deformable_stages
        require(
            len(set(stages)) == len(stages),
            f"model.backbone.deformable_stages names a stage twice: {list(stages)}.",
        )
        require(
            not stages or self.name in TORCHVISION_RESNETS,
            f"model.backbone.deformable_stages works for {', '.join(TORCHVISION_RESNETS)}, not for "
            f"{self.name}.",
        )
