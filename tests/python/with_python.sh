#!/usr/bin/env bash
# with_python.sh MODULES SCRIPT ARGS...: runs it where Python has the modules (separated by commas): TROUPE_PYTHON, the peers'
# environment (bench/peers.sh), or python3. Without one it exits with 77, which ctest takes as skipped.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
modules=$1
script=$here/$2
shift 2
for python in ${TROUPE_PYTHON:+"$TROUPE_PYTHON"} "$here/../../.cache/peers/bin/python" python3; do
  if "$python" -c "import $modules" 2>/dev/null; then
    exec "$python" "$script" "$@"
  fi
done
echo "no Python with $modules: set TROUPE_PYTHON to one, or run bench/peers.sh once for those that it installs" >&2
exit 77
