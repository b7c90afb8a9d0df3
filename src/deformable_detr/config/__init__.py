"""The configuration of a run: its fields and their ranges, YAML files and overrides, and the recipes.

settings.py    the declaration of a field: default, range, help text
fields.py      the fields, and the conditions between them
backbone.py    the fields of the backbone
losses.py      the fields of the losses
routes.py      the fields of the routes, which are used only in training
checks.py      checks of types and ranges, and the wording of types and values in messages
choices.py     names of model parts that are defined outside the package
files.py       conversion to and from dictionaries and YAML, overrides
recipes.py     one function per recipe
"""

from .backbone import LITE0, TORCHVISION_RESNETS, BackboneConfig
from .choices import add_choice
from .fields import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Attention,
    Augmentation,
    Classification,
    DataConfig,
    Layout,
    LearningRateRule,
    ModelConfig,
    Neck,
    Position,
    Precision,
    QuerySource,
    RunConfig,
    Schedule,
    TrainConfig,
)
from .files import from_dict, override, read_config, read_yaml, to_dict, with_file
from .losses import ClassificationLoss, LossConfig
from .recipes import RECIPES, recipe
from .routes import RouteConfig
from .settings import Setting, settings_of

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LITE0",
    "RECIPES",
    "TORCHVISION_RESNETS",
    "Attention",
    "Augmentation",
    "BackboneConfig",
    "Classification",
    "ClassificationLoss",
    "DataConfig",
    "Layout",
    "LearningRateRule",
    "LossConfig",
    "ModelConfig",
    "Neck",
    "Position",
    "Precision",
    "QuerySource",
    "RouteConfig",
    "RunConfig",
    "Schedule",
    "Setting",
    "TrainConfig",
    "add_choice",
    "from_dict",
    "override",
    "read_config",
    "read_yaml",
    "recipe",
    "settings_of",
    "to_dict",
    "with_file",
]
