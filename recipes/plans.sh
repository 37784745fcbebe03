#!/usr/bin/env bash
# What caches and guidance cost and change on the CIFAR-10 models that ship: their curves (models/*.plans.json), the same for
# other samplers, both controls (fewer steps, and DPM-Solver++ at equal work), how many images a search needs, and what of
# the saved work is saved time. Tables and plots for docs/plans.md.
#
#   recipes/plans.sh [OUT]      OUT: build/plans
#
# An hour on two cores; started again it leaves out what is done. Times are worth something on a quiet machine only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} out=${1:-build/plans}
readonly static=models/dit-cifar10.safetensors dynamic=models/dydit-cifar10-0.5.safetensors
readonly run=(--cfg-scale 2 --dtype f32)
mkdir -p "$out"

# curve NAME MODEL FLAG...: OUT/NAME.plans.json and .csv
curve() {
  local name=$1 model=$2
  shift 2
  [[ ! -e $out/$name.csv ]] || return 0
  "$dydit" calibrate --model "$model" "${run[@]}" --out "$out/$name.plans.json" --csv "$out/$name.csv" "$@"
}

uniform=fora,taylor,lagrange,stack,steps,guide  # all but the search
for kind in static dynamic; do
  model=${!kind}
  curve "ddim50-$kind" "$model" --sampler ddim --steps 50 --images 16
  curve "dpm20-$kind" "$model" --sampler dpm++ --steps 20 --images 16
  curve "dpm50-$kind" "$model" --sampler dpm++ --steps 50 --images 16 --families "$uniform"
  curve "ddpm250-$kind" "$model" --sampler ddpm --steps 250 --images 8 --families fora,taylor,steps
  for images in 1 2 4 8 16; do  # of the search
    curve "search$images-$kind" "$model" --sampler ddim --steps 50 --images 16 --families search --search-images "$images"
  done
done

# Closeness to the solution of the ODE, DPM-Solver++ with 100 steps: is a cached sampler better than a better sampler?
# latents NAME MODEL FLAG...: 16 samples
latents() {
  local name=$1 model=$2
  shift 2
  [[ -e $out/$name.safetensors ]] || "$dydit" generate --model "$model" "${run[@]}" -n 16 --seed 1000 --latents \
    "$out/$name.safetensors" -q "$@"
}
for kind in static dynamic; do
  model=${!kind}
  latents "exact-$kind" "$model" --sampler dpm++ --steps 100
  latents "ddim-50-$kind" "$model" --sampler ddim --steps 50
  for cache in taylor:2,1 taylor:3,1 taylor:4,1 taylor:5,1; do
    latents "ddim-50-$cache-$kind" "$model" --sampler ddim --steps 50 --cache "$cache"
    latents "dpm-50-$cache-$kind" "$model" --sampler dpm++ --steps 50 --cache "$cache"
  done
  latents "dpm-20-taylor:2,1-$kind" "$model" --sampler dpm++ --steps 20 --cache taylor:2,1
  for steps in 11 14 18 26; do
    latents "ddim-$steps-$kind" "$model" --sampler ddim --steps "$steps"
    latents "dpm-$steps-$kind" "$model" --sampler dpm++ --steps "$steps"
  done
done

python3 tools/plan_curves.py "$out/curves.svg" static="$out/ddim50-static.csv" dynamic="$out/ddim50-dynamic.csv" \
  --title "DDIM-50 of the CIFAR-10 models: distance to the model's own full run"
python3 tools/plan_curves.py "$out/seconds.svg" static="$out/ddim50-static.csv" dynamic="$out/ddim50-dynamic.csv" --x seconds \
  --title "DDIM-50 of the CIFAR-10 models: distance to the model's own full run"
for sampler in ddim50 dpm20 dpm50 ddpm250; do
  printf '\n%s\n' "$sampler"
  python3 tools/plan_curves.py --table static="$out/$sampler-static.csv" dynamic="$out/$sampler-dynamic.csv"
done
for kind in static dynamic; do
  printf '\n%s: distance to DPM-Solver++ with 100 steps\n' "$kind"
  for file in "$out"/d*-"$kind".safetensors; do
    build/venv/bin/python3 tools/latents_distance.py "$out/exact-$kind.safetensors" "$file"
  done
done

# The realised share of cached runs, from forwards of 50 steps.
for case in "--model $static --batch 16" "--model $dynamic --batch 16" "--size DyDiT-S/2 --batch 16" "--size DyDiT-XL/2 --batch 2"; do
  for cache in taylor:3,1 stack:3,2 fora:3; do
    # shellcheck disable=SC2086
    "$dydit" bench $case --cache "$cache" --sampler ddim --steps 50 --repeats 3 --dtype bf16 | grep -E '^(Dy)?DiT|realised|keeps'
  done
done
