#!/usr/bin/env bash
# How good the CIFAR-10 models that ship are: FID, KID, IS, precision, recall, class agreement and cost of N images each, with
# features of ResNet-56 and EfficientNet-Lite0, against the training images. Results as JSON, and a table (docs/evaluation.md).
#
#   recipes/evaluate-cifar.sh [OUT]      OUT: build/evaluate-cifar
#
# CIFAR10 names the images (default: data/cifar10.tar.gz in DYDIT_SHARED, ../shared), RESNET the folder of
# resnet56-4bfd9763.th (default: data there). N (5000) images of seed SEED (0) a run; RUNS ("ddim:50 ddpm:250") samplers and steps.
# DYDIT is the program. Started again it leaves out what is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} data=${DYDIT_SHARED:-../shared}/data out=${1:-build/evaluate-cifar}
readonly cifar=${CIFAR10:-$data/cifar10.tar.gz} resnet=${RESNET:-$data} images=${N:-5000} seed=${SEED:-0}
read -ra runs <<<"${RUNS:-ddim:50 ddpm:250}"
[[ -e $cifar ]] || { printf 'evaluate-cifar.sh: %s: no such file; CIFAR10=FILE names the images\n' "$cifar" >&2; exit 1; }
mkdir -p "$out"
lite0=$(scripts/fetch-weights)

weights() { case $1 in resnet56) echo "$resnet" ;; lite0) echo "$lite0" ;; esac; }

for extractor in resnet56 lite0; do
  stats=$out/train-$extractor.stats.safetensors
  [[ -e $stats ]] || "$dydit" evaluate --images "$cifar" --images-split train --extractor "$extractor" \
    --weights "$(weights "$extractor")" --write-stats "$stats"
done

# result FILE FLAG...: the verb's JSON, whole or not at all.
result() {
  local file=$1
  shift
  [[ -e $file ]] || { "$dydit" evaluate --json "$@" >"$file.part"; mv "$file.part" "$file"; }
}

# measure NAME MODEL FLAG...: samples once, for the ResNet; its images go to the other network.
measure() {
  local name=$1 model=$2
  shift 2
  result "$out/$name.resnet56.json" --model "$model" -n "$images" --seed "$seed" --cfg-scale 1.5 --dtype f32 --extractor resnet56 \
    --weights "$(weights resnet56)" --reference "$out/train-resnet56.stats.safetensors" --name "$name" --save "$out/$name.npz" "$@"
  result "$out/$name.lite0.json" --images "$out/$name.npz" --extractor lite0 --weights "$(weights lite0)" \
    --reference "$out/train-lite0.stats.safetensors" --name "$name"
}

for run in "${runs[@]}"; do
  sampler=(--sampler "${run%:*}" --steps "${run#*:}")
  measure "static-${run/:/-}" models/dit-cifar10.safetensors "${sampler[@]}"
  measure "dynamic-${run/:/-}" models/dydit-cifar10-0.5.safetensors "${sampler[@]}"
done
measure static-ddim-50-taylor models/dit-cifar10.safetensors --sampler ddim --steps 50 --cache taylor:3,1
measure dynamic-ddim-50-taylor models/dydit-cifar10-0.5.safetensors --sampler ddim --steps 50 --cache taylor:3,1

python3 tools/evaluation_table.py "$out"/*.json
