"""The command `python -m deformable_detr`, which does the same as `deformable-detr`.

With `torchrun -m deformable_detr`, this command runs in several processes.
"""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
