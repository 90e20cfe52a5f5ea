#!/usr/bin/env bash
# From the start of the program to its first token, SmolLM2-135M: seconds = wall time of `generate` of one token, fastest of five.
set -euo pipefail
cd "$(dirname "$(dirname "$(readlink -f "$0")")")"

model=${1-models/smollm2-135m}
[[ -f $model/config.json ]] || { echo "bench/startup.sh: no model in $model; ./dev demo makes models/smollm2-135m" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo '{"prompt": "The capital of France is"}' >"$scratch/in.jsonl"

# fastest COMMAND...: milliseconds of the fastest of five runs
fastest() {
  local best=999999 start milliseconds
  for _ in 1 2 3 4 5; do
    start=$(date +%s%N)
    "$@" >/dev/null 2>"$scratch/log" || { cat "$scratch/log" >&2; exit 1; }
    milliseconds=$((($(date +%s%N) - start) / 1000000))
    if ((milliseconds < best)); then best=$milliseconds; fi
  done
  echo "$best"
}

weights=$(du -cm "$model"/*.safetensors | awk 'END { print $1 }')
for dtype in bfloat16 float32; do
  program=$(fastest build/cpu/troupe generate --model "$model" --input "$scratch/in.jsonl" --output "$scratch/out.jsonl" \
    --max-tokens 1 --temperature 0 --dtype "$dtype")
  # The floor: reading the weights once, from the page cache.
  floor=$(fastest cat "$model"/*.safetensors)
  printf '{"bench": "startup", "dtype": "%s", "seconds": %d.%03d, "weights_mb": %d, "seconds_to_read_weights": %d.%03d}\n' \
    "$dtype" $((program / 1000)) $((program % 1000)) "$weights" $((floor / 1000)) $((floor % 1000))
done
