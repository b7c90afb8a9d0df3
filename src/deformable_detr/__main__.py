"""The command `python -m deformable_detr`, the same as `deformable-detr`, because torchrun needs a module."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
