"""Check an installation, which may have no extras and no compiled operator: it must print its version and its
help, compute the operator, and find shapes in a bundled picture. Run it with the Python of that
installation."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import torch

import deformable_detr as dd


def main() -> None:
    assert dd.__version__ == version("deformable-detr")
    command = [sys.executable, "-m", "deformable_detr"]
    for arguments in (["--version"], ["--help"], ["train", "--help"], ["doctor"]):
        subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
    # For two points of one query on a map of ones the result is the sum of the weights.
    found = dd.ops.ms_deform_attn(
        torch.ones(1, 12, 1, 4),
        ((3, 4),),
        torch.full((1, 1, 1, 1, 2, 2), 0.5),
        torch.full((1, 1, 1, 1, 2), 0.25),
    )
    torch.testing.assert_close(found, torch.full((1, 1, 4), 0.5))
    detector = dd.load("demo")
    detections = detector.predict(_picture())
    assert len(detections), "the bundled model finds nothing in its own picture"
    print(f"deformable-detr {dd.__version__}: {dd.ops.kernels()['cpu']}; {len(detections)} detections")


def _picture() -> str:
    from importlib.resources import files

    folder = files("deformable_detr") / "bundled" / "pictures"
    return str(next(each for each in folder.iterdir() if each.name.endswith(".jpg")))


if __name__ == "__main__":
    main()
