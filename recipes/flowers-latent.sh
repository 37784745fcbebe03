#!/usr/bin/env bash
# The whole way in latent space, on two cores and within two hours: 4,317 photographs of flowers -> latents of a tiny
# autoencoder (taef2: 32 channels, 16x16) -> a small static DiT -> a DyDiT at lambda 0.5 -> pictures of both, and their cost.
#
#   recipes/flowers-latent.sh [OUT]      OUT: build/flowers-latent
#
# FLOWERS names the images (default: data/flowers128.tar.gz in DYDIT_SHARED, ../shared), TAEF2 the folder with
# taef2_encoder.pth and taef2_decoder.pth (default: data there). STEPS (7000) of the static model, and 3/7 as many of the
# dynamic one. DYDIT is the program. Killed at any moment and started again it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly dydit=${DYDIT:-build/release/dydit} data=${DYDIT_SHARED:-../shared}/data out=${1:-build/flowers-latent} steps=${STEPS:-7000}
readonly flowers=${FLOWERS:-$data/flowers128.tar.gz} taef2=${TAEF2:-$data}
[[ -e $flowers ]] || { printf 'flowers-latent.sh: %s: no such file; FLOWERS=FILE names the images (see the first lines here)\n' "$flowers" >&2; exit 1; }
mkdir -p "$out/vae"
for half in encoder decoder; do cp -n "$taef2/taef2_$half.pth" "$out/vae/"; done

"$dydit" latents --vae "$out/vae" --data-path "$flowers" --split flowers --image-size 128 --normalize --check --out "$out/latents"

train_flags=(--data-path "$out/latents" --ckpt-every 250 --global-batch-size 64 --clip-grad 1 --log-every 50)
readonly model_dtype=bf16
source recipes/stage.sh

stage static "$steps" train --hidden 256 --depth 8 --heads 8 --patch 2 --lr 5e-4 --warmup-step 300 --ema-decay 0.9995
stage dynamic $((steps * 3 / 7)) finetune --model "$out/static.safetensors" --lambda 0.5 --router-bias 3,3 --router-lr-scale 10 \
  --lr 1e-4 --ema-decay 0.999

# Twenty pictures of each from the same noise, four of each kind of flower.
for name in static dynamic; do
  "$dydit" generate --model "$out/$name.safetensors" --vae "$out/vae" --classes 0,1,2,3,4 -n 20 --sampler ddim --steps 50 \
    --cfg-scale 2 --seed 0 --out "$out/$name.png" --npz "$out/$name.npz" --json -q >"$out/$name.json"
done
python3 tools/sample_sheet.py "$out/sheet.svg" static="$out/static" dynamic="$out/dynamic"
"$dydit" inspect "$out/dynamic.safetensors" --plan-steps 50 --svg "$out/plan.svg" -q
