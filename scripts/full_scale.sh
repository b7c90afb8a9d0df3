#!/usr/bin/env bash
# One row of the paper's table 1 in full, on one node: 8 GPUs (or as many as GPUS says), 32 pictures an update.
#
#   scripts/full_scale.sh path/to/coco deformable_detr_r50 [more options of `deformable-detr train` …]
#
# Run it again to go on with a run that was stopped. Then: python -m experiments.paper table1 path/to/coco --rebuild --output runs/paper
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 DATA RECIPE [options of \`deformable-detr train\` …]" >&2
    exit 2
fi
data=$1
recipe=$2
shift 2
gpus=${GPUS:-8}
batch=${BATCH:-2}           # pictures per GPU and step
total=${TOTAL:-32}          # pictures per update; 32 is the published setting of all rows but DETR's, 64
epochs=${EPOCHS:-50}
seed=${SEED:-42}
for number in "$gpus" "$batch" "$total" "$epochs"; do
    if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
        echo "GPUS, BATCH, TOTAL and EPOCHS must be whole numbers of at least 1, not '$number'." >&2
        exit 2
    fi
done
drop=$((epochs > 1 ? epochs * 4 / 5 : 1)) # the learning rate, as in the papers
accumulate=$((total / (gpus * batch)))
if [ $((accumulate * gpus * batch)) -ne "$total" ]; then
    echo "GPUS=$gpus times BATCH=$batch must divide TOTAL=$total: choose another." >&2
    exit 2
fi
output=runs/paper/runs/full/$recipe-${epochs}ep-seed$seed
resume=()
if [ -e "$output/training_state.pt" ]; then resume=(--resume); fi

torchrun --standalone --nproc-per-node "$gpus" -m deformable_detr train "$data" \
    --recipe "$recipe" --output "$output" "${resume[@]}" \
    --train.epochs "$epochs" --train.lr_drop_epochs "[$drop]" --train.seed "$seed" \
    --train.batch_size "$batch" --train.accumulate "$accumulate" "$@"
