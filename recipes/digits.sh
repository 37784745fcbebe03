#!/usr/bin/env bash
# From nothing to a dynamic model: scikit-learn's digits (1,797 gray 8x8 images) -> a static DiT -> a DyDiT of
# half its work -> samples of both, their cost, and the plan. docs/training.md walks through it.
#
#   recipes/digits.sh [OUT] [--quick]      OUT: build/digits
#
# About three minutes; --quick is a smaller model, less training and a lower bar, in about a minute.
# DYDIT is the program (build/release/dydit); DYDIT_PYTHON a python3 with scikit-learn, else build/recipes gets one.
# Exit status 77: scikit-learn cannot be had, nothing was tried.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit}
# So small a model gains little from a second thread, and two threads that share a core wait for each other.
export DYDIT_THREADS=${DYDIT_THREADS:-1}
readonly wheels=(scikit-learn==1.7.2 numpy==2.2.6)
out=build/digits quick=
for argument in "$@"; do
  case $argument in
    --quick) quick=1 ;;
    -*) printf 'usage: recipes/digits.sh [OUT] [--quick]\n' >&2; exit 2 ;;
    *) out=$argument ;;
  esac
done
readonly out quick

if [[ $quick ]]; then
  size=(--hidden 64 --depth 4 --heads 4 --patch 2) steps=1600 lr=5e-3 ema=0.99
  tune_steps=700 tune_lr=1e-3 anneal=400 sample_steps=25 least=0.75
else
  size=(--hidden 128 --depth 4 --heads 4 --patch 2) steps=2000 lr=2e-3 ema=0.995
  tune_steps=1000 tune_lr=5e-4 anneal=600 sample_steps=50 least=0.9
fi

# Prints a python3 that has scikit-learn, or fails with 77.
find_python() {
  local candidate
  for candidate in "${DYDIT_PYTHON:-}" build/recipes/bin/python; do
    [[ $candidate ]] && "$candidate" -c 'import sklearn' 2>/dev/null && { printf '%s\n' "$candidate"; return; }
  done
  if ! { python3 -m venv build/recipes && build/recipes/bin/pip install -q "${wheels[@]}"; } >&2; then
    printf 'digits.sh: SKIPPED: scikit-learn cannot be installed from PyPI; is the network there?\n' >&2
    return 77
  fi
  printf 'build/recipes/bin/python\n'
}

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

# train_model VERB FLAGS...: trains and prints the checkpoint's path, which is what the program says last.
train_model() {
  "$dydit" "$@" --data-path "$out/images" --global-batch-size 32 --flip off --seed 1 --log-every 100 |
    sed -n 's/^wrote //p'
}

# sample NAME MODEL: OUT/NAME.png, a row holds the ten digits in order; OUT/NAME.npz for the check; the cost.
sample() {
  "$dydit" generate --model "$2" --num-images 100 --sampler ddim --steps "$sample_steps" --cfg-scale 4 --seed 1 \
    --batch 100 --out "$out/$1.png" --npz "$out/$1.npz"
}

python=$(find_python)
mkdir -p "$out"

say "the digits as class folders"
"$python" tools/digits_folders.py "$out/images"

say "a static DiT, $steps steps"
static=$(train_model train "${size[@]}" --results-dir "$out/static" --total-train-steps "$steps" --lr "$lr" \
  --warmup-step 200 --ema-decay "$ema")

# Routers start near open and learn ten times as fast as the rest, because the run is short; with the defaults
# (biases 15 and 35, the same learning rate) they need the thousands of steps of a real fine-tune.
say "a dynamic one from it, half the work, $tune_steps steps"
dynamic=$(train_model finetune --model "$static" --results-dir "$out/dynamic" --lambda 0.5 \
  --total-train-steps "$tune_steps" --lr "$tune_lr" --router-bias 3,3 --router-lr-scale 10 \
  --anneal-start 50 --anneal-steps "$anneal" --skip-norm 20 --ema-decay "$ema")

say "100 samples of each, the same noise"
sample static "$static"
sample dynamic "$dynamic"
"$python" tools/digits_sheet.py "$out/static.npz" "$out/dynamic.npz" "$out/sheet.png"

say "what the dynamic model decides"
"$dydit" inspect "$dynamic"

say "are they the digits they should be?"
"$python" tools/check_digits.py "$out/static.npz" "$out/dynamic.npz" --least "$least"
printf '\n%s/sheet.png: static above, dynamic below. %d s in all.\n' "$out" "$SECONDS"
