#!/usr/bin/env bash
# The first eight minutes on a GPU, after `make setup-gpu setup-export`:
#
#   benchmarks/gpu.sh OUT CIFAR_ARCHIVE [HARDWARE]
#
# What `mixer plan` predicts for B/16 and S/32 on HARDWARE (h100-1), their steps
# beside timm's, compiled, and configs/cifar10.py:model=nano for as many epochs
# as fit. JSON and Markdown are written to the folder OUT; the same command goes
# on with the training.
set -euo pipefail

usage="benchmarks/gpu.sh OUT CIFAR_ARCHIVE [HARDWARE]"
out=${1:?$usage} archive=${2:?$usage} hardware=${3:-h100-1}
python=${PYTHON:-.venv/bin/python}
limit=480 batch=512
mkdir -p "$out"

for variant in S/32 B/16; do
  "$python" -m mixer plan --config=configs/mixer_b16_i21k.py \
    --config.model.variant="$variant" --config.batch_size="$batch" \
    --classes=1000 --examples=1281167 --hardware="$hardware" \
    --json > "$out/plan_${variant/\//_}.json"
done
"$python" -m benchmarks.peers --variants=S/32,B/16 --batch="$batch" \
  --dtype=bfloat16 --rounds=3 --seconds=1 --out="$out/peers.json" |
  tee "$out/peers.md"

"$python" -m mixer prepare cifar10 --source="$archive" --data_dir="$out/data"
# It saves and exits with 42 where the time ends it; without any left it ends
# as soon as it has started.
left=$((limit > SECONDS ? limit - SECONDS : 1))
timeout --signal=TERM "$left" "$python" train.py \
  --config=configs/cifar10.py:model=nano --workdir="$out/nano" \
  --config.data.data_dir="$out/data" --platform=gpu || [ $? = 124 ]
"$python" -m mixer inspect "$out/nano" | tee "$out/nano.txt"
