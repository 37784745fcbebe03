#!/usr/bin/env bash
# What the trainer's methods gain on CIFAR-10, each beside its control by equal data, order and steps: where t is drawn, losses
# on features, patch sizes, the capacity rule's choices, low-rank fine-tuning, few steps. Then of every model the loss on
# held-out images by decile, KID and FID, and work. docs/training.md has what came of it.
#
#   recipes/methods-cifar.sh [OUT]      OUT: build/methods
#
# CIFAR10 names the images (default: data/cifar10.tar.gz in DYDIT_SHARED, ../shared), RESNET56 the encoder that features are
# aligned to (default: data/resnet56-4bfd9763.th there), DYDIT the program. METHODS ("draw align levels capacity adapters few") says
# which, SEEDS ("0 1") of which draws, ONLY=train or ONLY=judge one half. SCRATCH_STEPS (2000 of 64 images, a model of 4 blocks),
# TUNE_STEPS (600 of 32, of the model that ships), IMAGES (1000) and LOSS_IMAGES (200) say how much: on two cores of AVX2 about 15
# minutes an arm. recipes/methods_table.py OUT prints what there is. Killed at any moment and started again it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} shared=${DYDIT_SHARED:-../shared}/data out=${1:-build/methods}
readonly images=${CIFAR10:-$shared/cifar10.tar.gz} resnet=${RESNET56:-$shared/resnet56-4bfd9763.th}
[[ -e $images ]] || { printf 'methods-cifar.sh: %s: no such file; CIFAR10=FILE names CIFAR-10 (see the first lines here)\n' "$images" >&2; exit 1; }
readonly scratch_steps=${SCRATCH_STEPS:-2000} tune_steps=${TUNE_STEPS:-600} count=${IMAGES:-1000} loss_images=${LOSS_IMAGES:-200} only=${ONLY:-}
readonly start=models/dit-cifar10.safetensors model_dtype=f32
read -ra methods <<<"${METHODS:-draw align levels capacity adapters few}"
read -ra seeds <<<"${SEEDS:-0 1}"
train_flags=(--data-path "$images" --split train --clip-grad 1 --log-every 50 --ckpt-every 200)
source recipes/stage.sh
mkdir -p "$out"

lite0=$(scripts/fetch-weights)

# judge FILE WORD...: what the program prints, unless it was printed before
judge() {
  local file=$1
  shift
  [[ -s $file ]] || { "$dydit" "$@" --json -q >"$file.part" && mv "$file.part" "$file"; }
}

# arm NAME SAMPLING STEPS VERB FLAG...: a model, and what it is worth. SAMPLING: flags of generate, in one word
arm() {
  local name=$1 steps=$3 verb=$4 sampling
  read -ra sampling <<<"$2"
  shift 4
  [[ $only == judge ]] || stage "$name" "$steps" "$verb" "$@"
  [[ $only != train && -e $out/$name.safetensors ]] || return 0
  judge "$out/loss-$name.json" evaluate --loss --model "$out/$name.safetensors" --data-path "$images" --split test \
    --images "$loss_images" --seeds 2
  judge "$out/judged-$name.json" evaluate --model "$out/$name.safetensors" "${sampling[@]}" -n "$count" --seed 0 \
    --extractor lite0 --weights "$lite0" --reference "$images" --reference-split test --name "$name"
}

usual="--sampler ddim --steps 50 --cfg-scale 1.5"
scratch() {  # NAME FLAG...: a model of 1.3 M parameters from nothing
  arm "$1" "$usual" "$scratch_steps" train --hidden 128 --depth 4 --heads 4 --patch 4 --lr 1e-3 --warmup-step 100 \
    --ema-decay 0.995 --global-batch-size 64 --seed "$seed" "${@:2}"
}
tuned() {  # NAME SAMPLING FLAG...: of the model that ships
  arm "$1" "$2" "$tune_steps" finetune --model "$start" --lr 1e-4 --ema-decay 0.99 --global-batch-size 32 --seed "$seed" "${@:3}"
}
# In some hundred steps routers that start at 15 and 35 would not close; see docs/training.md.
routed=(--lambda 0.5 --anneal-steps "$((tune_steps / 2))" --router-bias 3,3 --router-lr-scale 10 --gate-rule capacity)

for seed in "${seeds[@]}"; do
  for method in "${methods[@]}"; do
    case $method in
      draw)
        scratch "plain-$seed"
        scratch "uniform-$seed" --timesteps uniform
        scratch "speed-draw-$seed" --timesteps speed --loss-weights off
        scratch "speed-$seed" --timesteps speed
        ;;
      align)
        scratch "plain-$seed"
        scratch "dispersive-$seed" --align dispersive --align-block 1
        scratch "self-$seed" --align self --align-block 1 --align-teacher-block 3
        scratch "encoder-$seed" --align encoder --align-encoder "$resnet" --align-block 2
        scratch "plr-$seed" --plr 0.1
        ;;
      levels)
        tuned "static-$seed" "$usual" --static
        tuned "levels-time-$seed" "$usual" --static --level-from 500
        tuned "levels-step-$seed" "$usual" --static --levels 2
        [[ $only != train ]] || continue
        for steps in 10 15 20 25 30; do  # the same models by schedule; fewer steps of the control at equal work
          for name in levels-time levels-step; do
            judge "$out/weak$steps-$name-$seed.json" evaluate --model "$out/$name-$seed.safetensors" $usual --weak-steps "$steps" -n "$count" \
              --seed 0 --extractor lite0 --weights "$lite0" --reference "$images" --reference-split test --name "$name, $steps weak"
          done
          fewer=$((50 - steps * 3 / 4))
          judge "$out/fewer$steps-static-$seed.json" evaluate --model "$out/static-$seed.safetensors" --sampler ddim --steps "$fewer" --cfg-scale 1.5 \
            -n "$count" --seed 0 --extractor lite0 --weights "$lite0" --reference "$images" --reference-split test --name "static, $fewer steps"
        done
        judge "$out/guided-levels-step-$seed.json" evaluate --model "$out/levels-step-$seed.safetensors" $usual --guide-weak -n "$count" --seed 0 \
          --extractor lite0 --weights "$lite0" --reference "$images" --reference-split test --name "levels-step, weak guidance"
        for name in levels-time levels-step; do
          judge "$out/loss1-$name-$seed.json" evaluate --loss --level 1 --model "$out/$name-$seed.safetensors" --data-path "$images" --split test \
            --images "$loss_images" --seeds 2
        done
        ;;
      capacity)
        tuned "static-$seed" "$usual" --static
        tuned "capacity-$seed" "$usual" "${routed[@]}"
        tuned "interval-$seed" "$usual" "${routed[@]}" --share-gradient interval
        tuned "regions10-$seed" "$usual" "${routed[@]}" --regions 10
        tuned "block-$seed" "$usual" "${routed[@]}" --token-scope block
        ;;
      adapters)
        tuned "capacity-$seed" "$usual" "${routed[@]}"
        tuned "td-lora-$seed" "$usual --engine reference" "${routed[@]}" --adapter td-lora --lora-rank 8 --lora-experts 4
        tuned "lora-$seed" "$usual" "${routed[@]}" --adapter lora --lora-rank 18
        tuned "routers-$seed" "$usual" "${routed[@]}" --train routers
        ;;
      few)
        arm "lcm-$seed" "" "$tune_steps" train --model "$start" --distill lcm --teacher "$start" --distill-guidance 1.5 --loss huber --lr 1e-4 \
          --ema-decay 0.95 --global-batch-size 32 --seed "$seed"
        [[ $only != train ]] || continue
        for steps in 4 8 50; do
          judge "$out/ddim$steps.json" evaluate --model "$start" --sampler ddim --steps "$steps" --cfg-scale 1.5 -n "$count" --seed 0 \
            --extractor lite0 --weights "$lite0" --reference "$images" --reference-split test --name "DDIM, $steps steps"
        done
        ;;
      *)
        printf 'methods-cifar.sh: METHODS holds %s; draw, align, levels, capacity, adapters and few are known\n' "$method" >&2
        exit 1
        ;;
    esac
  done
done
