"""The settings of the model, the data and the training, as frozen dataclasses with the paper's defaults.

`setting` declares each field once, with its default, its range and its help text, which `--help` and
docs/configuration.md show. Invalid settings are refused when the configuration is created, with a sentence
that names the field. Recipes (recipes.py) are instances of `RunConfig`. A run folder contains its
configuration as `config.yaml`, and a checkpoint contains its `ModelConfig` in `config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .backbone import BackboneConfig
from .checks import check, require
from .losses import LossConfig
from .routes import RouteConfig
from .settings import setting

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Neck = Literal["projection", "channel_mapper", "fpn", "bifpn"]
Position = Literal["sine", "sine_half_pixel"]
Attention = Literal["dense", "deformable", "deformable_own_level"]
QuerySource = Literal["static", "reference_points", "proposals", "mixed"]
Classification = Literal["softmax", "sigmoid_focal"]
Layout = Literal["auto", "coco", "voc", "yolo"]
Augmentation = Literal["paper", "light", "none"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["step", "cosine"]
LearningRateRule = Literal["none", "sqrt", "linear"]
TrainBatching = Literal["padded", "single", "auto"]


@dataclass(frozen=True)
class ModelConfig:
    """The parts of a model. The defaults describe Deformable DETR with ResNet-50.

    Raises:
        UserError: if a setting has a wrong type or is out of range, or settings contradict each other.
    """

    num_classes: int = setting(
        91,
        "The number of classes that the model distinguishes; training takes it from the data. Published COCO "
        "checkpoints have 91, for COCO's 80 names.",
        minimum=1,
    )
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: Neck = setting(
        "channel_mapper",
        "The part between backbone and encoder: `projection` (DETR: one 1x1 convolution on the last feature "
        "map), `channel_mapper` (1x1 convolutions and group norm; strided 3x3 convolutions add further "
        "levels), or a pyramid on top of the channel mapper, `fpn` or `bifpn` (the paper's Table 2).",
    )
    position: Position = setting(
        "sine_half_pixel",
        "Encoding of positions: `sine` (DETR), or `sine_half_pixel`, which encodes the centres of pixels "
        "(Deformable DETR).",
    )
    attention: Attention = setting(
        "deformable",
        "The attention to the memory: `dense` (to every token), `deformable` (to sampled points on all "
        "levels) or `deformable_own_level` (to sampled points on the query's own level; the paper's "
        "Table 2).",
    )
    queries: QuerySource = setting(
        "reference_points",
        "The source of the object queries: `static` (DETR), `reference_points` (learned points), or two "
        "stages, in which queries start at the encoder's best boxes. `proposals` computes the position and "
        "the content of a query from its box; `mixed` computes only the position and learns the content.",
    )
    classification: Classification = setting(
        "sigmoid_focal",
        "The meaning of class logits: `softmax` over the classes and a no-object class, or `sigmoid_focal`, "
        "one sigmoid per class with focal loss.",
    )
    num_queries: int = setting(
        300, "Object queries Q: the maximum number of objects that can be found in an image.", minimum=1
    )
    hidden_dim: int = setting(256, "Channels C of tokens and queries.", minimum=1)
    num_heads: int = setting(8, "Attention heads M.", minimum=1)
    num_levels: int = setting(
        4,
        "Feature levels L: up to three come from the backbone's last stages, further ones from stride-2 "
        "convolutions.",
        minimum=1,
        maximum=1000,
    )
    num_points: int = setting(4, "Sampling points K per attention head and feature level.", minimum=1)
    encoder_layers: int = setting(6, "Layers of the encoder.", minimum=0, maximum=1000)
    decoder_layers: int = setting(6, "Layers of the decoder.", minimum=1, maximum=1000)
    ffn_dim: int = setting(
        1024, "Hidden width of the feed-forward part of each encoder and decoder layer.", minimum=1
    )
    dropout: float = setting(0.1, "Dropout rate in every layer, during training.", minimum=0, below=1)
    decoder_norm: bool = setting(False, "Apply layer norm to the output of each decoder layer, as DETR does.")
    refine_references: bool = setting(
        False, "Iterative bounding box refinement: each decoder layer updates the reference boxes."
    )
    mask_invalid_proposals: bool = setting(
        False,
        "Two stages: keep padded and out-of-range tokens out of the first stage's top-k. The authors' code "
        "does not, so published checkpoints need false.",
    )
    nms_iou: float | None = setting(
        None,
        "Of detections of one class that overlap by more than this IoU, keep only the best; null, as in the "
        "paper, keeps all. A two-stage model takes a long time to learn to report each object once; this "
        "helps until it has.",
        above=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        check(self, "model.")
        require(
            self.hidden_dim % self.num_heads == 0,
            f"model.hidden_dim ({self.hidden_dim}) must be divisible by model.num_heads ({self.num_heads}).",
        )
        require(
            self.hidden_dim % 4 == 0,
            f"model.hidden_dim ({self.hidden_dim}) must be divisible by 4: the sine position encoding "
            "needs a sine and a cosine for x and for y.",
        )
        self._check_attention()
        if self.two_stage:
            self._check_proposals()

    @property
    def two_stage(self) -> bool:
        """True if the queries start at boxes that a first stage proposes."""
        return self.queries in ("proposals", "mixed")

    def _check_attention(self) -> None:
        one_level = (
            "model.neck=projection makes one level"
            if self.neck == "projection"
            else "dense attention reads one level"
        )
        require(
            self.num_levels == 1 or (self.neck != "projection" and self.attention != "dense"),
            f"model.num_levels is {self.num_levels}, but {one_level}: set model.num_levels to 1.",
        )
        require(
            self.attention != "deformable_own_level" or not self.two_stage,
            f"model.queries={self.queries} takes its queries from any level, but with "
            "model.attention=deformable_own_level each query has a fixed one: set "
            "model.attention=deformable.",
        )
        require(
            self.attention == "dense" or self.queries != "static",
            "model.queries=static has no reference points to sample around: deformable attention "
            "needs model.queries=reference_points, proposals or mixed.",
        )

    def _check_proposals(self) -> None:
        require(
            self.classification == "sigmoid_focal",
            f"model.queries={self.queries} ranks tokens by the logit of one class, which means nothing by "
            "itself under softmax: set model.classification=sigmoid_focal.",
        )
        require(
            self.refine_references,
            f"model.queries={self.queries} (two stages) needs model.refine_references=true: the proposals "
            "are boxes that the decoder refines.",
        )
        require(
            self.num_levels <= 5,
            f"model.queries={self.queries} works with up to 5 levels, not {self.num_levels}: the base size "
            "of proposals doubles per level and leaves the image at the sixth.",
        )


@dataclass(frozen=True)
class DataConfig:
    """The conversion of image files to the model's input.

    Raises:
        UserError: if a setting has a wrong type or is out of range, or settings contradict each other.
    """

    format: Layout = setting(
        "auto",
        "Layout of the data set: `coco`, `voc` (Pascal VOC) or `yolo`; `auto` recognises it by its files.",
    )
    image_size: int = setting(
        800, "Length of the short side in evaluation and prediction, in pixels.", minimum=32, maximum=10_000
    )
    max_size: int = setting(
        1333,
        "Maximum length of the long side, in pixels, also in training; the short side shrinks with it.",
        maximum=100_000,
    )
    train_sizes: tuple[int, ...] = setting(
        (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        "Lengths of the short side that training chooses from at random (multi-scale training), in pixels.",
        minimum=32,
        maximum=10_000,
        filled=True,
    )
    size_multiple: int = setting(
        1,
        "Round both sides of resized pictures to multiples of this number of pixels, in training and "
        "prediction. With the stride of the coarsest feature map, cells show the same places in pictures of "
        "all sizes.",
        minimum=1,
        maximum=256,
    )
    augmentation: Augmentation = setting(
        "paper",
        "The augmentation of training images: `paper` (flip, resize and random crop, as in DETR), `light` "
        "(flip, resize, milder crop and colour jitter, for small data sets) or `none` (resize to image_size "
        "only).",
    )
    vertical_flip: bool = setting(
        False,
        "With augmentation=light, also turn half of the images upside down. This suits images that have no "
        "up and down, such as microscopy and aerial images.",
    )
    crop_sizes: tuple[int, ...] = setting(
        (400, 500, 600),
        "With augmentation=paper, lengths of the short side before the crop, in pixels.",
        minimum=1,
        filled=True,
    )
    crop_min: int = setting(
        384, "With augmentation=paper, minimum side of the random crop, in pixels.", minimum=1
    )
    crop_max: int = setting(600, "With augmentation=paper, maximum side of the random crop, in pixels.")
    mean: tuple[float, float, float] = setting(
        IMAGENET_MEAN,
        "Mean of red, green and blue in [0, 1], which normalisation subtracts. Use that of the "
        "backbone's weights.",
    )
    std: tuple[float, float, float] = setting(
        IMAGENET_STD,
        "Standard deviation of red, green and blue, by which normalisation divides. Use that of the "
        "backbone's weights.",
        above=0,
    )
    strict: bool = setting(
        False, "Refuse data that has problems, instead of dropping broken boxes and reporting them."
    )
    max_pixels: int = setting(
        100_000_000, "Refuse images with more pixels than this before they are decoded.", minimum=1
    )
    images: str | None = setting(
        None,
        "A URL such as `s3://bucket/coco/{split}` with the pictures of a COCO data set whose folder holds "
        "only annotations; `{split}` stands for train2017, val2017, …. With null, they are in the folder.",
    )
    cache_gb: float = setting(
        10.0, "With data.images, maximum size of the pictures that are kept on the disk, in GB.", minimum=0
    )
    cache_folder: str = setting(
        "~/.cache/deformable_detr/pictures", "With data.images, the folder in which pictures are kept."
    )
    num_workers: int = setting(
        2, "Processes that load images; with 0 the training process loads them itself.", minimum=0
    )

    def __post_init__(self) -> None:
        check(self, "data.")
        require(
            self.max_size >= self.image_size,
            f"data.max_size ({self.max_size}) must not be smaller than data.image_size ({self.image_size}).",
        )
        require(
            self.crop_min <= self.crop_max,
            f"data.crop_min ({self.crop_min}) must be at most data.crop_max ({self.crop_max}).",
        )


@dataclass(frozen=True)
class TrainConfig:
    """The settings of training (paper, section 5).

    Raises:
        UserError: if a setting has a wrong type or is out of range.
    """

    epochs: int = setting(50, "Train for this many passes over the training images.", minimum=0)
    max_steps: int | None = setting(
        None, "End training after this many updates, even if fewer epochs are done.", minimum=0
    )
    fit_to_data: bool = setting(
        False,
        "Adapt the settings that still have the recipe's values to the data: at least 700 updates, a warm-up "
        "of at most a tenth of them, 1.5 times as many queries as the fullest image has objects, and larger "
        "images if half of the objects, or of a common class, would be small. The log says what changed.",
    )
    balance: bool = setting(
        False,
        "Draw images with rare classes more often (and others less often, as epochs stay equally long).",
    )
    batch_size: int = setting(2, "Images per process and micro-batch.", minimum=1)
    accumulate: int = setting(1, "Micro-batches per update.", minimum=1)
    batching: TrainBatching = setting(
        "padded",
        "How the images of a micro-batch are computed: `padded` (padded to one size), `single` (one "
        "by one, without padding and in less memory) or `auto` (`single` on a CPU, where it is faster unless "
        "images are small, otherwise `padded`).",
    )
    lr: float = setting(2e-4, "AdamW's learning rate, at a total batch of lr_batch_size images.", minimum=0)
    lr_backbone: float = setting(2e-5, "The backbone's learning rate, at the same total batch.", minimum=0)
    lr_sampling_multiplier: float = setting(
        0.1,
        "Factor on the learning rate of the layers that predict reference points and sampling offsets.",
        minimum=0,
    )
    lr_rule: LearningRateRule = setting(
        "none",
        "How the learning rates change if the total batch differs from lr_batch_size: `none` (not at all), "
        "`sqrt` (with the square root of the ratio) or `linear` (in proportion).",
    )
    lr_batch_size: int = setting(
        32,
        "The total batch (images x accumulate x processes) for which the learning rates are meant.",
        minimum=1,
    )
    schedule: Schedule = setting(
        "step",
        "How the learning rates decrease: `step` (by a factor at certain epochs) or `cosine` (smoothly to "
        "zero).",
    )
    lr_drop_epochs: tuple[int, ...] = setting(
        (40,), "With schedule=step, multiply the rates by lr_gamma after these epochs."
    )
    lr_gamma: float = setting(
        0.1, "With schedule=step, the factor by which the rates are multiplied.", minimum=0
    )
    warmup_steps: int = setting(
        0, "Raise the learning rates linearly over this many updates at the start.", minimum=0
    )
    weight_decay: float = setting(1e-4, "AdamW's decoupled weight decay.", minimum=0)
    clip_norm: float = setting(
        0.1, "Scale gradients down to this L2 norm if they exceed it; 0 turns clipping off.", minimum=0
    )
    ema_decay: float = setting(
        0.0,
        "Decay of an exponential moving average of the weights, which evaluation and checkpoints use; 0 "
        "turns it off.",
        minimum=0,
        below=1,
    )
    precision: Precision = setting(
        "auto",
        "Number format of the computation: `fp32`, or autocast to `bf16` or `fp16`; `auto` is bf16 on a GPU "
        "that supports it, otherwise fp32.",
    )
    seed: int = setting(42, "Seed of everything that is random in training.", minimum=0)
    backbone_weights: str | None = setting(
        "imagenet",
        "The backbone's initial weights: `imagenet` (published ones), a file, or null for random ones.",
    )
    evaluate_every: int = setting(
        1, "Epochs between two evaluations; the end of training is always evaluated.", minimum=1
    )
    checkpoint_every: int = setting(
        0, "Also save the state after this many updates; 0 saves it only after epochs.", minimum=0
    )
    log_every: int = setting(10, "Updates between two lines on the screen and in metrics.jsonl.", minimum=1)
    activation_checkpointing: bool = setting(
        False,
        "Compute each encoder and decoder layer twice, instead of keeping what its gradient needs: less "
        "memory, more time, the same result.",
    )
    precision_at_least: float | None = setting(
        None,
        "Choose the model's score thresholds so that as many objects as possible are found with at least "
        "this precision, from 0 to 1. With null, they are chosen for the best F1.",
        above=0,
        maximum=1,
    )
    look_forward_twice: bool = setting(
        False,
        "With refinement, let the loss of a layer's boxes also train the layer before it, whose boxes they "
        "start from (DINO). Predictions do not change.",
    )
    report: bool = setting(True, "Write report.html into the run folder at the end.")
    cache_features: bool = setting(
        False,
        "Compute the features of each image only once. This needs a frozen backbone and images that are "
        "not augmented.",
    )
    cache_memory_gb: float = setting(
        2.0, "Maximum size of the cached features in memory, in GB per process.", minimum=0
    )
    cache_disk_gb: float = setting(
        20.0, "Maximum size of the cached features on disk, in GB per process.", minimum=0
    )
    loss: LossConfig = field(default_factory=LossConfig)
    routes: RouteConfig = field(default_factory=RouteConfig)

    def __post_init__(self) -> None:
        check(self, "train.")


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a training run: the settings of the model, the data and the training.

    It does not say where the data set is. `recipe` names the recipe from which the settings were derived.

    Raises:
        UserError: if a setting has a wrong type or is out of range, or settings contradict each other.
    """

    recipe: str = setting("deformable_detr_r50", "The name of the recipe that the run started from.")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check(self, "")
        self._check_learning()
        if self.train.cache_features:
            require(
                self.model.backbone.trainable_layers == 0 or self.train.lr_backbone == 0,
                "train.cache_features needs a frozen backbone: set model.backbone.trainable_layers to 0.",
            )
            require(
                self.data.augmentation == "none",
                "train.cache_features needs the same pixels in each epoch: set data.augmentation to none.",
            )

    def _check_learning(self) -> None:
        """Raise a UserError if the model does not support the settings of its training."""
        require(
            self.model.refine_references or not self.train.look_forward_twice,
            "train.look_forward_twice needs layers that start from the boxes of the layer before: set "
            "model.refine_references to true.",
        )
        require(
            self.model.classification == "sigmoid_focal" or self.train.loss.classification_loss == "focal",
            f"train.loss.classification_loss is {self.train.loss.classification_loss}, which needs one "
            "sigmoid per class: set model.classification to sigmoid_focal, or this loss to focal.",
        )
        extended = [
            ("train.loss.object_repeats", self.train.loss.object_repeats > 1),
            ("train.routes", self.train.routes.is_any),
        ]
        for name, is_used in extended:
            require(
                self.model.classification != "softmax" or not is_used,
                f"{name} needs one sigmoid per class: set model.classification to sigmoid_focal.",
            )
        require(
            self.model.two_stage or self.train.routes.denoising == 0,
            "train.routes.denoising needs queries that can start at any box: set model.queries to mixed or "
            "proposals.",
        )
