#!/usr/bin/env bash
# The run half of the kit: prove the guard on this machine's GPU, then measure what it costs. Needs what install.sh made.
#
#   run.sh [OUT_DIR] [PART ...]   the JSON goes to OUT_DIR (default: bench/results); PARTs are parity, kernels, bench and
#                                 profile (default: all, in this order)
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${1:-bench/results}
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=(parity kernels bench profile)
bin=${HGUARD_KIT_VENV:-.venv-gpu}/bin

if [ ! -x "$bin/python" ]; then
  echo "run.sh: $bin/python is missing; run bench/gpu/install.sh WHEELS_DIR first" >&2
  exit 1
fi
if ! "$bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "run.sh: torch sees no NVIDIA GPU; nothing here can be proven without one" >&2
  exit 1
fi

mkdir -p "$out"
for part in "${parts[@]}"; do
  case $part in
    parity) # the kernels compiled, the V2 runner with graphs on, against transformers and against plain vLLM
      "$bin/python" -m pytest -q -o timeout=580 tests/engine/test_kernels.py tests/gpu
      ;;
    kernels)
      "$bin/hguard" bench --kernels --out "$out/gpu-kernels.json"
      ;;
    bench) # two engines share the GPU, so each gets less than half of it
      "$bin/hguard" bench --shape llama-8b --out "$out/gpu-llama-8b.json" --clients 1,32,256 --prompt 512 --output 256 \
        --requests 1 --rounds 3 -- --gpu-memory-utilization 0.42 --max-model-len 1024 --max-num-seqs 256
      ;;
    profile) # one engine after the other
      "$bin/hguard" bench --profile --shape llama-8b --out "$out/gpu-llama-8b-profile.json" --clients 1,32,256 \
        --prompt 512 -- --gpu-memory-utilization 0.8 --max-model-len 1024 --max-num-seqs 256
      ;;
    *)
      echo "run.sh: $part is no part; they are parity, kernels, bench and profile" >&2
      exit 1
      ;;
  esac
done
