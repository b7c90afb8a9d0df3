"""Train the bundled model `demo` with a longer schedule of the demo's recipe, and store it in half precision.

    python scripts/bundled_model.py runs/bundled

draws 2,000 + 200 pictures, trains (half an hour on one core; a stopped run can be continued), evaluates the
model after rounding to float16, and writes src/deformable_detr/bundled/: weights, four pictures that were not
used for training, and metrics.json. The model in the repository was trained with the demo's recipe of
2026-11-25.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

import deformable_detr as dd
from deformable_detr.checkpoint.names import BUNDLED
from deformable_detr.checkpoint.native import CONFIG_FILE, WEIGHTS_FILE
from deformable_detr.cli.demo import IMAGE_SIZE, demo_config
from deformable_detr.data.drawn import generate
from deformable_detr.run_folder.names import BEST, CHECKPOINTS, STATE_FILE

TRAIN_IMAGES, VAL_IMAGES, EPOCHS = 2000, 200, 12
PICTURES, PICTURE_SIZE, PICTURE_SEED = 4, (240, 320), 7


def main(folder: Path) -> None:
    data, run = folder / "data", folder / "run"
    if not data.exists():
        generate(data, train=TRAIN_IMAGES, val=VAL_IMAGES, image_size=IMAGE_SIZE, seed=1)
    config = demo_config()
    config = replace(
        config, train=replace(config.train, epochs=EPOCHS, evaluate_every=5, warmup_steps=200, seed=1)
    )
    dd.train(data, config, run, resume=(run / STATE_FILE).exists())

    checkpoint = run / CHECKPOINTS / BEST
    state = {name: tensor.half() for name, tensor in load_file(checkpoint / WEIGHTS_FILE).items()}
    BUNDLED.mkdir(exist_ok=True)
    save_file(state, BUNDLED / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copy(checkpoint / CONFIG_FILE, BUNDLED / CONFIG_FILE)
    metrics = {
        "command": "python scripts/bundled_model.py FOLDER",
        "data": f"{VAL_IMAGES} drawn pictures, seed 1",
        **dd.evaluate(BUNDLED, data),
    }
    (BUNDLED / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")

    shown = generate(folder / "pictures", train=1, val=PICTURES, image_size=PICTURE_SIZE, seed=PICTURE_SEED)
    (BUNDLED / "pictures").mkdir(exist_ok=True)
    for number, picture in enumerate(sorted((shown / "val").iterdir()), start=1):
        shutil.copy(picture, BUNDLED / "pictures" / f"shapes_{number}{picture.suffix}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
