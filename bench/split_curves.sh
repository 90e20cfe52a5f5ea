#!/usr/bin/env bash
# The learning curves of docs/split-llama.md: SmolLM2 cut in two, its bridge fitted, warmed up by distillation, then trained by reward.
#   bench/split_curves.sh TROUPE FIT-TEXT OUT N M [STAGE...]     N + M < 30; OUT gets the models, the runs and an accuracy a stage
# Stages: fit, warm, adapter (RL of the bridge alone), all (RL of everything). Needs models/smollm2-135m (`./dev demo` makes it).
set -euo pipefail
cd "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
troupe=$1 text=$2 out=$3 n=$4 m=$5
shift 5
stages=${*:-fit warm adapter all}
model=models/smollm2-135m name=$n-$m
mkdir -p "$out"

accuracy() { "$troupe" eval configs/quickstart.toml --set "model.path=$1" | tee "$out/$name-$2.json"; }

for stage in $stages; do
  case $stage in
  fit)
    sed "s/\"num_layers_8\": [0-9]*/\"num_layers_8\": $n/; s/\"num_layers_70\": [0-9]*/\"num_layers_70\": $m/; s/\"identity\"/\"fit\"/" \
      configs/split/smollm2-14-14.json >"$out/$name.json"
    "$troupe" convert split "$out/$name.json" "$out/$name" --fit-text "$text" --fit-tokens 65536
    accuracy "$out/$name" fitted
    ;;
  warm)
    # The teacher's own answers: 32 of the unsplit model for each training prompt, sampled at temperature 1.
    if [[ ! -f $out/warm.jsonl ]]; then
      python3 - configs/quickstart/train.jsonl >"$out/prompts.jsonl" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    print(json.dumps({"messages": json.loads(line)["prompt"]}))
PY
      "$troupe" generate --model $model --input "$out/prompts.jsonl" --output "$out/samples.jsonl" --n 32 --temperature 1 --max-tokens 16
      python3 - "$out/prompts.jsonl" "$out/samples.jsonl" >"$out/warm.jsonl" <<'PY'
import json, sys
prompts = [json.loads(line)["messages"] for line in open(sys.argv[1])]
for line in open(sys.argv[2]):
    sample = json.loads(line)
    if sample["finish_reason"] == "stop":
        print(json.dumps({"messages": prompts[sample["index"]] + [{"role": "assistant", "content": sample["text"]}]}))
PY
    fi
    "$troupe" train configs/split/distill.toml --set "model.path=$out/$name" --set "run.dir=$out/warm-$name" --set 'data.train_files=["'"$out/warm.jsonl"'"]' \
      --set 'data.val_files=[]' --set run.total_epochs=3 --set run.test_freq=0 --set data.train_batch_size=32 --set learner.optim.lr=1e-3
    "$troupe" convert hf "$out/warm-$name" "$out/$name-warm"
    accuracy "$out/$name-warm" warmed
    ;;
  adapter)
    "$troupe" train configs/split/smollm2.toml --set "model.path=$out/$name-warm" --set "run.dir=$out/rl-$name-adapter" --set run.total_steps=50 --set run.save_freq=0 \
      --set learner.optim.lr=1e-4
    ;;
  all)
    "$troupe" train configs/split/smollm2.toml --set "model.path=$out/$name-warm" --set "run.dir=$out/rl-$name-all" --set run.total_steps=50 --set run.save_freq=0 \
      --set 'model.trainable=["*"]' --set learner.optim.lr=1e-5
    ;;
  *) echo "split_curves.sh: no stage '$stage': fit, warm, adapter, all" >&2 && exit 2 ;;
  esac
done
