#!/usr/bin/env bash
# The CIFAR-10 models: the static DiT of 7.9 epochs trained on to 200, then fine-tuned to lambda 0.5 by both gate rules
# and, as a control, without routers: equal data, order and steps. Then the loss of all four on held-out images, what
# sampling costs, samples and plots.
#
#   recipes/cifar10.sh [OUT]      OUT: build/cifar10
#
# CIFAR10 names the images: the official cifar-10-binary.tar.gz, or a tar of train/CLASS/*.png and test/CLASS/*.png
# (default: data/cifar10.tar.gz in DYDIT_SHARED, ../shared). DYDIT is the program. DEVICE=cuda does all of it with a
# program of the preset cuda, from data/dit-cifar10-static.pt in DYDIT_SHARED (7.9 epochs with DiT's own code; it does
# not ship). Without it the static model is the one that ships, since 9,386 steps of 1,024 images are 27 hours on two
# cores, and a fine-tune takes 50 minutes. Killed at any moment and started again it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} data=${DYDIT_SHARED:-../shared}/data device=${DEVICE:-cpu}
readonly images=${CIFAR10:-$data/cifar10.tar.gz} out=${1:-build/cifar10}
[[ -e $images ]] || { printf 'cifar10.sh: %s: no such file; CIFAR10=FILE names CIFAR-10 (see the first lines here)\n' "$images" >&2; exit 1; }
readonly finetune_steps=4000
train_flags=(--data-path "$images" --split train --device "$device" --dtype bf16 --clip-grad 1 --ckpt-every 250)
readonly model_dtype=bf16
source recipes/stage.sh

mkdir -p "$out"
if [[ $device == cuda ]]; then
  stage static 9386 train --model "$data/dit-cifar10-static.pt" --global-batch-size 1024 --lr 1e-3 --warmup-step 500 \
    --ema-decay 0.9996 --seed 7 --log-every 100
else
  cp -n models/dit-cifar10.safetensors "$out/static.safetensors"
fi

# In 4,000 steps routers that start at 15 and 35 would hardly close; see docs/training.md.
finetune=(finetune --model "$out/static.safetensors" --global-batch-size 64 --lr 1e-4 --ema-decay 0.999 --log-every 20)
routers=(--lambda 0.5 --router-bias 3,3 --router-lr-scale 10)
stage capacity "$finetune_steps" "${finetune[@]}" "${routers[@]}" --gate-rule capacity
stage threshold "$finetune_steps" "${finetune[@]}" "${routers[@]}"
stage control "$finetune_steps" "${finetune[@]}" --static

# The loss on 100 held-out images by decile of t, and 64 images of 250 DDPM steps with their cost.
for name in static control threshold capacity; do
  model=$out/$name.safetensors
  "$dydit" evaluate --loss --model "$model" --data-path "$images" --split test --images 100 --seeds 3 \
    --csv "$out/loss-$name.csv" -q
  "$dydit" generate --model "$model" --classes 0,1,2,3,4,5,6,7,8,9 -n 64 --steps 250 --sampler ddpm --cfg-scale 1.5 \
    --seed 0 --npz "$out/$name.npz" --json -q >"$out/$name.json"
done
python3 tools/loss_table.py static="$out/loss-static.csv" control="$out/loss-control.csv" \
  threshold="$out/loss-threshold.csv" capacity="$out/loss-capacity.csv"
python3 tools/sample_sheet.py "$out/sheet.svg" static="$out/static" control="$out/control" dynamic="$out/capacity"

# Whole runs of 16 images, the dynamic and the complete model in turns.
"$dydit" bench --model "$out/capacity.safetensors" --run --batch 16 --sampler ddim --steps 50 --cfg-scale 1.5 --repeats 5 \
  --json -q >"$out/run.json"

for name in threshold capacity; do
  "$dydit" inspect "$out/$name.safetensors" --plan-steps 250 --svg "$out/plan-$name.svg" --csv "$out/plan-$name.csv" -q
  python3 tools/plot_csv.py "$out/$name.csv" "$out/ratio-$name.svg" --x step --y target_ratio ratio_training \
    ratio_inference --title "Work ratio of the fine-tune, $name rule" --from 0.4 --to 1
  python3 tools/plot_csv.py "$out/$name.csv" "$out/loss-$name.svg" --x step --y mse vb --title "Loss of the fine-tune, $name rule"
done
"$dydit" generate --model "$out/capacity.safetensors" --classes 0,1,2,3,4,5,6,7,8,9 -n 20 --steps 50 --sampler ddim \
  --cfg-scale 2 --seed 0 --out "$out/samples.png" --cost-map "$out/cost-map.png" -q
