#!/usr/bin/env bash
# One row of the paper's table 1 in full, on one node: 8 GPUs (or as many as GPUS says), 32 pictures an update.
#
#   scripts/full_scale.sh path/to/coco deformable_detr_r50 [more options of `deformable-detr train` …]
#
# Run it again to go on with a run that was stopped. Then: deformable-detr paper table1 path/to/coco --rebuild --output runs/paper
set -euo pipefail

data=$1
recipe=$2
shift 2
gpus=${GPUS:-8}
batch=${BATCH:-2}           # pictures per GPU and step
total=32                    # pictures per update, the published setting
epochs=${EPOCHS:-50}
seed=${SEED:-42}
accumulate=$((total / (gpus * batch)))
if [ $((accumulate * gpus * batch)) -ne "$total" ]; then
    echo "GPUS=$gpus times BATCH=$batch must divide $total; or choose a total of your own with --train.lr_rule." >&2
    exit 2
fi
output=runs/paper/runs/full/$recipe-${epochs}ep-seed$seed
resume=()
if [ -e "$output/training_state.pt" ]; then resume=(--resume); fi

torchrun --standalone --nproc-per-node "$gpus" -m deformable_detr train "$data" \
    --recipe "$recipe" --output "$output" "${resume[@]}" \
    --train.epochs "$epochs" --train.lr_drop_epochs "[$((epochs * 4 / 5))]" --train.seed "$seed" \
    --train.batch_size "$batch" --train.accumulate "$accumulate" "$@"
