#!/usr/bin/env bash
# The CIFAR-10 models from the static DiT of 7.9 epochs: trained on to 20, then fine-tuned to lambda 0.5 by both gate
# rules and, as a control, without routers: equal data, order and steps. Then the loss of all four on held-out images.
#
#   recipes/cifar10.sh [OUT]      OUT: build/cifar10
#
# DYDIT_SHARED (../shared) holds data/dit-cifar10-static.pt and data/cifar10.tar.gz; DYDIT is the program. Hours on
# two cores: 21,450 steps in all, at 1.4 a second where nothing else runs. Killed at any moment and started again it goes
# on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} data=${DYDIT_SHARED:-../shared}/data
readonly out=${1:-build/cifar10}
readonly pretrain_steps=9450 finetune_steps=4000  # of 64 images; 9,450 are 12.1 epochs on top of 7.9

# stage NAME STEPS VERB FLAG...: sets `model` to the moving average after STEPS steps
stage() {
  local name=$1 steps=$2 verb=$3 resume=()
  shift 3
  model=$(printf '%s/%s/*/checkpoints/%07d.safetensors' "$out" "$name" "$steps")
  if ! compgen -G "$model" >/dev/null; then
    compgen -G "$out/$name/*/checkpoints/*.state" >/dev/null && resume=(--resume)
    OMP_WAIT_POLICY=passive nice -n 19 "$dydit" "$verb" --data-path "$data/cifar10.tar.gz" --split train \
      --results-dir "$out/$name" --total-train-steps "$steps" --global-batch-size 64 --clip-grad 1 \
      --ema-decay 0.9995 --log-every 100 --ckpt-every 250 --keep-last 2 --keep-every "$steps" --dtype bf16 \
      "$@" ${resume[@]+"${resume[@]}"}
  fi
  model=$(compgen -G "$model")
}

stage pretrain "$pretrain_steps" train --model "$data/dit-cifar10-static.pt" --lr 5e-4 --warmup-step 200
static=$model

# In 4,000 steps routers that start at 15 and 35 would hardly close; see docs/training.md.
routers=(--lambda 0.5 --router-bias "3,3" --router-lr-scale 10)
stage capacity "$finetune_steps" finetune --model "$static" --lr 1e-4 "${routers[@]}" --gate-rule capacity
capacity=$model
stage threshold "$finetune_steps" finetune --model "$static" --lr 1e-4 "${routers[@]}"
threshold=$model
stage control "$finetune_steps" finetune --model "$static" --lr 1e-4 --static
control=$model

for name in static control threshold capacity; do  # variables of these names
  printf '%s\n' "$name (${!name})"
  "$dydit" evaluate --loss --model "${!name}" --data-path "$data/cifar10.tar.gz" --split test --images 2000 --seeds 3 \
    --csv "$out/loss-$name.csv" -q
done
