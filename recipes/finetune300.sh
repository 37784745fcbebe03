#!/usr/bin/env bash
# 300 steps of a fine-tune with lambda 0.5 on CIFAR-10, enough to see the work ratio follow its target, and the
# curves: OUT/curves.csv, OUT/loss.svg, OUT/ratio.svg.
#
#   recipes/finetune300.sh [OUT] [FLAG...]      OUT: build/finetune300; flags are dydit finetune's
#
# CIFAR10 names the images (recipes/cifar10.sh says which), MODEL the static model (default: data/dit-cifar10-static.pt
# in DYDIT_SHARED, ../shared, where it is, else the one that ships); DYDIT is the program. About seven minutes on one
# core (--threads 1), less on more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} data=${DYDIT_SHARED:-../shared}/data
readonly images=${CIFAR10:-$data/cifar10.tar.gz} out=${1:-build/finetune300}
[[ -e $images ]] || { printf 'finetune300.sh: %s: no such file; CIFAR10=FILE names CIFAR-10\n' "$images" >&2; exit 1; }
model=${MODEL:-$data/dit-cifar10-static.pt}
[[ -e $model || -n ${MODEL:-} ]] || model=models/dit-cifar10.safetensors

# A real fine-tune starts with biases 15 and 35 and takes thousands of steps; here the routers start near open and
# learn fifty times as fast as the rest, and the target has fallen to lambda after 200 steps.
"$dydit" finetune --model "$model" --data-path "$images" --split train \
  --results-dir "$out/results" --lambda 0.5 --total-train-steps 300 --global-batch-size 64 --lr 1e-4 \
  --router-bias 3,3 --router-lr-scale 50 --anneal-start 20 --anneal-steps 200 --ema-decay 0.99 --seed 1 \
  --log-every 5 --ckpt-every 100 "${@:2}"

runs=("$out"/results/*/)
cp "${runs[-1]}log.csv" "$out/curves.csv"
python3 tools/plot_csv.py "$out/curves.csv" "$out/loss.svg" --x step --y mse vb --title "300 steps to lambda 0.5: the loss"
python3 tools/plot_csv.py "$out/curves.csv" "$out/ratio.svg" --x step --y target_ratio ratio_training ratio_inference \
  --title "300 steps to lambda 0.5: the work ratio" --from 0.4 --to 1
