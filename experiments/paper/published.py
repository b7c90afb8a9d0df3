"""Results that the paper and its repository report (specification §10) on COCO; AP is in percent.

These are the paper's tables, and the table of the authors' repository on val2017, whose models were trained
after the release's fix of the offsets. If both have a number, the tables here show the paper's AP and the
repository's speed at batch 1 and 4, which the paper does not distinguish. Only the repository has rows of one
level.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row: AP in percent, `parameters` in millions, `gflops` in billions of multiply-adds, `gpu_hours` on
    V100, `fps_batch1` and `fps_batch4` in pictures per second on a V100. None means not reported."""

    AP: float
    AP50: float | None = None
    AP75: float | None = None
    APs: float | None = None
    APm: float | None = None
    APl: float | None = None
    parameters: float | None = None
    gflops: float | None = None
    gpu_hours: float | None = None
    fps_batch1: float | None = None
    fps_batch4: float | None = None


# Paper, Table 1; fps and single-scale rows: the repository's table.
FASTER_RCNN = Published(42.0, 62.1, 45.5, 26.6, 45.4, 53.4, 42, 180, 380, 25.6, 28.0)
DETR_500 = Published(42.0, 62.4, 44.2, 20.5, 45.8, 61.1, 41, 86, 2000, 27.0, 38.3)
DETR_DC5_500 = Published(43.3, 63.1, 45.9, 22.5, 47.3, 61.1, 41, 187, 7000, 11.4, 12.4)
DETR_DC5_50 = Published(35.3, 55.7, 36.8, 15.2, 37.5, 53.6, 41, 187, 700, 11.4, 12.4)
DETR_DC5_PLUS_50 = Published(36.2, 57.0, 37.4, 16.3, 39.2, 53.9, 41, 187, 700, 11.4, 12.4)
DEFORMABLE_50 = Published(43.8, 62.6, 47.7, 26.4, 47.1, 58.0, 40, 173, 325, 15.0, 19.4)
REFINE_50 = Published(45.4, 64.7, 49.0, 26.8, 48.3, 61.7, 40, 173, 325, 15.0, 19.4)
TWO_STAGE_50 = Published(46.2, 65.2, 50.0, 28.8, 49.2, 61.7, 40, 173, 340, 14.5, 18.8)
SINGLE_SCALE_50 = Published(39.4, None, None, 20.6, 43.0, 55.5, 34, 78, 160, 27.0, 42.4)
SINGLE_SCALE_DC5_50 = Published(41.5, None, None, 24.1, 45.3, 56.0, 34, 128, 215, 22.1, 29.4)

# The repository's own run of Deformable DETR, to compare its single-scale rows with.
DEFORMABLE_50_REPOSITORY = Published(44.5, APs=27.1, APm=47.6, APl=59.6)

# Paper, Table 2: 50 epochs.
FPN = Published(43.8, 62.6, 47.8, 26.5, 47.3, 58.1)
BIFPN = Published(43.9, 62.5, 47.7, 25.6, 47.4, 57.7)
SINGLE_SCALE_K1 = Published(39.7, 60.1, 42.4, 21.2, 44.3, 56.0)
OWN_LEVEL_K1 = Published(41.4, 60.9, 44.9, 24.1, 44.6, 56.1)
OWN_LEVEL_K4 = Published(42.3, 61.4, 46.0, 24.8, 45.1, 56.3)
MULTI_SCALE_K4 = Published(43.8, 62.6, 47.7, 26.4, 47.1, 58.0)

# Paper, Table 3: test-dev, two stages with refinement.
R50_TEST_DEV = Published(46.9, 66.4, 50.8, 27.7, 49.7, 59.9)
R101_TEST_DEV = Published(48.7, 68.1, 52.9, 29.1, 51.5, 62.0)
X101_TEST_DEV = Published(49.0, 68.5, 53.2, 29.7, 51.7, 62.8)
X101_DCN_TEST_DEV = Published(50.1, 69.7, 54.6, 30.6, 52.8, 64.7)
X101_DCN_TTA_TEST_DEV = Published(52.3, 71.9, 58.1, 34.4, 54.4, 65.6)

# Figure 3, as printed in it: {epochs of the whole schedule: AP at its end}.
FIGURE_3_DEFORMABLE = {25: 41.1, 50: 43.8, 100: 44.9, 150: 45.3, 300: 45.5}
FIGURE_3_DETR_DC5 = {500: 43.6}
