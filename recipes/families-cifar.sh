#!/usr/bin/env bash
# The method on other families, CIFAR-10: a SiT (velocity of the linear path) that starts from the DiT that ships, and a
# small unconditional U-ViT from scratch; each fine-tuned to lambda and, as a control, without routers by equal data,
# order and steps. Then of all six the loss on held-out images by decile, KID and FID of ResNet-56 features, work and
# time.
#
#   recipes/families-cifar.sh [OUT]      OUT: build/families
#
# CIFAR10 names the images (default: data/cifar10.tar.gz in DYDIT_SHARED, ../shared), RESNET56 the network of features
# (default: data/resnet56-4bfd9763.th there), DYDIT the program, ONLY=train or ONLY=judge one half. BATCH (32), SIT_STEPS
# (600), UVIT_STEPS (3000), TUNE_STEPS (600) and IMAGES (1000) say how much: on two cores of AVX2 a step of 32 images
# takes 1 s of the SiT and 0.4 s of the U-ViT. Killed at any moment and started again it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} shared=${DYDIT_SHARED:-../shared}/data out=${1:-build/families}
readonly images=${CIFAR10:-$shared/cifar10.tar.gz} resnet=${RESNET56:-$shared/resnet56-4bfd9763.th}
[[ -e $images ]] || { printf 'families-cifar.sh: %s: no such file; CIFAR10=FILE names CIFAR-10 (see the first lines here)\n' "$images" >&2; exit 1; }
readonly batch=${BATCH:-32} sit_steps=${SIT_STEPS:-600} uvit_steps=${UVIT_STEPS:-3000} tune_steps=${TUNE_STEPS:-600}
readonly count=${IMAGES:-1000} only=${ONLY:-}
train_flags=(--data-path "$images" --split train --clip-grad 1 --global-batch-size "$batch" --log-every 20 --ckpt-every 100)
readonly model_dtype=f32
source recipes/stage.sh

# In some hundred steps routers that start at 15 and 35 would not close; see docs/training.md.
routers=(--router-bias 3,3 --router-lr-scale 10 --gate-rule capacity)
tune() {  # NAME LAMBDA: of OUT/NAME.safetensors
  local flags=(finetune --model "$out/$1.safetensors" --lr 1e-4 --ema-decay 0.99)
  stage "dy$1" "$tune_steps" "${flags[@]}" --lambda "$2" --anneal-steps "$((tune_steps / 2))" "${routers[@]}"
  stage "$1-control" "$tune_steps" "${flags[@]}" --static
}

mkdir -p "$out"
if [[ $only != judge ]]; then
  stage sit "$sit_steps" train --model models/dit-cifar10.safetensors --path linear --prediction velocity --lr 2e-4 \
    --ema-decay 0.99
  tune sit 0.5
  stage uvit "$uvit_steps" train --family uvit --unconditional --hidden 128 --depth 9 --heads 4 --patch 4 --lr 5e-4 \
    --weight-decay 0.03 --warmup-step 100 --ema-decay 0.995
  tune uvit 0.4
fi
[[ $only != train ]] || exit 0

# judge FILE WORD...: what the program prints, unless it was printed before
judge() {
  local file=$1
  shift
  [[ -s $file ]] || { "$dydit" "$@" --json -q >"$file.part" && mv "$file.part" "$file"; }
}
for name in sit sit-control dysit uvit uvit-control dyuvit; do
  model=$out/$name.safetensors
  [[ -e $out/loss-$name.csv ]] || "$dydit" evaluate --loss --model "$model" --data-path "$images" --split test --images 100 \
    --seeds 3 --csv "$out/loss-$name.csv" -q
  guidance=()
  [[ $name == *sit* ]] && guidance=(--cfg-scale 1.5)
  judge "$out/judged-$name.json" evaluate --model "$model" --sampler euler --steps 50 ${guidance[@]+"${guidance[@]}"} \
    -n "$count" --seed 0 --extractor resnet56 --weights "$resnet" --reference "$images" --reference-split test --name "$name"
  judge "$out/bench-$name.json" bench --model "$model" --steps 20 --repeats 5 --batch 8
done
