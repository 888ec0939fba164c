#!/usr/bin/env bash
# Train on one GPU: launch/single_gpu.sh CONFIG.py [--setting value ...]
#
# CUDA_VISIBLE_DEVICES says which, the first unless set.
set -euo pipefail

export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
# Without a GPU, or without JAX's CUDA plugin, an error and not a slow run on the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS-cuda}

hfdist=$(dirname "$0")/../.venv/bin/hfdist
if [[ ! -x $hfdist ]] && ! hfdist=$(command -v hfdist); then
    echo "single_gpu.sh: no .venv/bin/hfdist in the repository and none on PATH" >&2
    exit 2
fi
exec "$hfdist" train "$@"
