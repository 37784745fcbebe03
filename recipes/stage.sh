# The step that recipes of training share; they source it with `dydit`, `out`, `train_flags` (of all stages) and
# `model_dtype` (f32 or bf16) set.

# stage NAME STEPS VERB FLAG...: trains, or goes on where it was, to OUT/NAME.safetensors, the moving average after STEPS
# steps, and OUT/NAME.csv, its log
stage() {
  local name=$1 steps=$2 verb=$3 resume=() last
  local model=$out/$name.safetensors
  shift 3
  [[ ! -e $model ]] || return 0
  compgen -G "$out/$name/*/checkpoints/*.state" >/dev/null && resume=(--resume)
  OMP_WAIT_POLICY=passive "$dydit" "$verb" --results-dir "$out/$name" --total-train-steps "$steps" --keep-last 2 \
    "${train_flags[@]}" "$@" ${resume[@]+"${resume[@]}"}
  last=$(compgen -G "$(printf '%s/%s/*/checkpoints/%07d.safetensors' "$out" "$name" "$steps")")
  cp "$out/$name"/*/log.csv "$out/$name.csv"
  "$dydit" convert "$last" "$model" --dtype "$model_dtype"
}
