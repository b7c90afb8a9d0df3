#!/usr/bin/env bash
# gpu_check.sh [--device cuda|cpu] [--quick] [--sweep] [--steps abcdefg] [--seconds N] [--seed N] OUT
#
# Everything that only a GPU can tell, in one command of at most N seconds (360): see experiments/gpu/ and docs/gpu.md.
# --sweep: also look for better cuts of the kernels, and let ncu look at them; give it a hundred seconds more.
# It needs no network: what the machine lacks comes from .wheels/ (scripts/gpu_wheels.sh). OUT gets results.json,
# summary.txt, log.txt, profile.txt and ncu.txt, written as it goes. Exit code 1: a step that proves something failed.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda quick= sweep= steps=abcdefg seconds=360 seed=$RANDOM out=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift ;;
    --quick) quick=--quick ;;
    --sweep) sweep=--sweep ;;
    --seconds) seconds=$2; shift ;;
    --steps) steps=${2//,/}; shift ;;
    --seed) seed=$2; shift ;;
    -*) echo "gpu_check.sh: there is no option $1" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
if [ -z "$out" ]; then echo "usage: gpu_check.sh [--device cuda|cpu] [--quick] [--sweep] [--steps abc] [--seconds N] [--seed N] OUT" >&2; exit 2; fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
mkdir -p "$work/logs"
log=$out/log.txt
: > "$log"
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT

python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor TORCHINDUCTOR_COMPILE_THREADS=4
if [ "$device" = cuda ]; then export OMP_NUM_THREADS=4; fi # many processes share the cores
common=(--device "$device" --seed "$seed" --work "$work" --output "$out" $quick)

note() { echo "[$SECONDS s] $*" | tee -a "$log"; }
# run NAME SECONDS COMMAND…: with its output in a log of its own, which is appended to the log at the end.
run() {
  local name=$1 limit=$2 began=$SECONDS code; shift 2
  timeout --kill-after=5 "$limit" "$@" > "$work/logs/$name" 2>&1
  code=$?
  { echo; echo "==== $name: exit code $code after $((SECONDS - began)) s"; tail -c 40000 "$work/logs/$name"; } >> "$log"
  note "$name ended with $code after $((SECONDS - began)) s"
  return $code
}

# ---- What the machine lacks ----------------------------------------------------------------------
needed='import deformable_detr.ops, faster_coco_eval; assert deformable_detr.ops.native_available()'
if ! "$python" -c "$needed" 2>> "$log"; then
  site=$work/site
  wheels=(.wheels/*.whl)
  if [ -e "${wheels[0]}" ]; then
    run wheels 60 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "${wheels[@]}"
  fi
  run build 300 "$python" -m pip install -q --no-index --no-deps --no-build-isolation --no-cache-dir --upgrade --target "$site" .
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$work/rival${PYTHONPATH:+:$PYTHONPATH}
gpu() { "$python" -m experiments.gpu "$@" "${common[@]}"; }
run machine 200 "$python" -m experiments.gpu machine "${common[@]}"

# step LETTER SECONDS [THREADS]: one step in its time box; it knows of the box, and leaves out what no longer fits.
step() {
  case $steps in
    *$1*) run "step_$1" $(($2 + 6)) env ${3:+OMP_NUM_THREADS=$3} "$python" -m experiments.gpu step "$1" --seconds "$2" $sweep "${common[@]}" ;;
  esac
}
# measure LETTER SECONDS SPARE: at most SECONDS, and so that SPARE of all the time are left.
measure() {
  local left=$((seconds - SECONDS - $3 - 8))
  if [ $left -gt $2 ]; then left=$2; fi
  if [ $left -ge 12 ]; then step $1 $left; else note "no time was left for step $1"; fi
}

if [ "$device" = cpu ]; then
  for letter in a b c d e f g; do step $letter 300; done
else
  # First what proves, side by side, and beside it what the other steps need: pictures, and compiled code.
  sdist=$(ls .wheels/torch_ms_deform_attn-*.tar.gz 2>/dev/null | head -1)
  proving=() helping=()
  step c 150 1 & proving+=($!)
  step a 118 1 & proving+=($!)
  step b 114 3 & proving+=($!)
  case $steps in *d*) run draw 110 "$python" -m experiments.gpu draw "${common[@]}" & helping+=($!) ;; esac
  case $steps in *f*) run variant 120 "$python" -m experiments.gpu compile-variant "${common[@]}" & helping+=($!) ;; esac
  case $steps in *e*)
    if [ -n "$sdist" ] && ! "$python" -c "import torch_ms_deform_attn" 2> /dev/null; then
      # Its headers ask for more than some toolkits bring: PyTorch's own packages have the rest.
      more=$("$python" -c "import glob, site; print(':'.join(sum((glob.glob(f'{p}/nvidia/cu13/include') for p in site.getsitepackages()), [])))")
      run rival 150 env CPATH="$more" FORCE_CUDA=1 FORCE_OPENMP=0 TORCH_CUDA_ARCH_LIST=9.0 CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}" \
        "$python" -m pip install -q --no-index --no-deps --no-build-isolation --no-cache-dir --target "$work/rival" "$sdist" & helping+=($!)
    fi
    if [ -n "$sweep" ]; then
      for part in 0 1 2 3 4 5 6 7; do
        run "cuts_$part" 130 "$python" -m experiments.gpu compile-cuts $part 8 "${common[@]}" & helping+=($!)
      done
    fi ;;
  esac
  wait "${proving[@]}" "${helping[@]}"
  # Then what measures, alone, and last the small model, which takes what is left.
  measure g 50 90
  measure f 38 55
  measure e $([ -n "$sweep" ] && echo 60 || echo 18) 40
  measure d 85 0
  if [ -n "$sweep" ] && ncu=$(command -v ncu); then
    case $steps in *e*)
      run ncu 40 "$ncu" --set detailed --kernel-name 'regex:^(forward|backward)_kernel' --launch-count 4 \
        "$python" -m experiments.gpu kernels "${common[@]}"
      tail -c 200000 "$work/logs/ncu" > "$out/ncu.txt" ;;
    esac
  fi
fi
note "all done"
gpu summary "$steps"
