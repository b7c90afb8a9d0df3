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
# Pictures per update and epochs as published; DETR's rows need TOTAL=64.
case $recipe in
    deformable_detr_r50_plus*) total=${TOTAL:-16} epochs=${EPOCHS:-12} ;;
    *) total=${TOTAL:-32} epochs=${EPOCHS:-50} ;;
esac
seed=${SEED:-42}
for number in "$gpus" "$batch" "$total" "$epochs"; do
    if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
        echo "GPUS, BATCH, TOTAL and EPOCHS must be whole numbers of at least 1, not '$number'." >&2
        exit 2
    fi
done
# The epoch after which the learning rate falls, as published: 40 of 50; 11 of 12, 20 of 24 and 30 of 36.
case $recipe in
    deformable_detr_r50_plus*) drop=$((epochs > 12 ? epochs * 5 / 6 : epochs * 11 / 12)) ;;
    *) drop=$((epochs * 4 / 5)) ;;
esac
drop=$((drop > 0 ? drop : 1))
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
