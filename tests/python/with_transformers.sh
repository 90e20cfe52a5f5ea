#!/usr/bin/env bash
# with_transformers.sh SCRIPT ARGS...: runs it where Python has PyTorch and Transformers: TROUPE_PYTHON, the peers' environment
# (bench/peers.sh), or python3. Without one it exits with 77, which ctest takes as skipped.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
script=$here/$1
shift
for python in ${TROUPE_PYTHON:+"$TROUPE_PYTHON"} "$here/../../.cache/peers/bin/python" python3; do
  if "$python" -c 'import torch, transformers' 2>/dev/null; then
    exec "$python" "$script" "$@"
  fi
done
echo "no Python with torch and transformers: set TROUPE_PYTHON, or run bench/peers.sh once" >&2
exit 77
