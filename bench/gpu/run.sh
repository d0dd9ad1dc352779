#!/usr/bin/env bash
# The run half of the kit: prove the guard on this machine's GPU, then measure what it costs. Needs what install.sh made.
#
#   run.sh [OUT_DIR]            both halves; the JSON goes to OUT_DIR (default: bench/results)
#   HGUARD_KIT_PART=parity      only the tests       HGUARD_KIT_PART=bench   only the measurement
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${1:-bench/results}
part=${HGUARD_KIT_PART:-all}
bin=${HGUARD_KIT_VENV:-.venv-gpu}/bin

if [ ! -x "$bin/python" ]; then
  echo "run.sh: $bin/python is missing; run bench/gpu/install.sh WHEELS_DIR first" >&2
  exit 1
fi
if ! "$bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "run.sh: torch sees no NVIDIA GPU; nothing here can be proven without one" >&2
  exit 1
fi

if [ "$part" != bench ]; then
  # The kernels compiled, the V2 runner with graphs on, against transformers and against plain vLLM.
  "$bin/python" -m pytest -q -o timeout=580 tests/engine/test_kernels.py tests/gpu
fi
if [ "$part" != parity ]; then
  mkdir -p "$out"
  # Two engines share the GPU, so each gets less than half of it.
  "$bin/hguard" bench --shape llama-8b --out "$out/gpu-llama-8b.json" --clients 1,32,256 --prompt 512 --output 256 \
    --requests 1 --rounds 3 -- --gpu-memory-utilization 0.42 --max-model-len 1024 --max-num-seqs 256
fi
