"""`python -m deformable_detr`, which equals the command `deformable-detr`. torchrun needs a module."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
