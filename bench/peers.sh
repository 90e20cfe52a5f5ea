#!/usr/bin/env bash
# Makes the peers' environment in .cache/peers: PyTorch, Transformers and TRL, pinned (5 GB; 2 to 5 minutes the first time).
set -euo pipefail
cd "$(dirname "$(dirname "$(readlink -f "$0")")")"

peers=(torch==2.11.0 transformers==5.23.0 tokenizers==0.23.3 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 jinja2==3.1.6 numpy==2.4.6)
directory=.cache/peers
pins=$(printf '%s\n' "${peers[@]}")
[[ ! -f $directory/pins || $(<$directory/pins) != "$pins" ]] || exit 0
echo "-- making $directory: ${peers[*]} (5 GB; 2 to 5 minutes)" >&2
rm -rf "$directory"
python3 -m venv "$directory"
"$directory/bin/pip" install --quiet "${peers[@]}" >&2
printf '%s\n' "$pins" >"$directory/pins"
