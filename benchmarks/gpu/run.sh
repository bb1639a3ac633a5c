#!/usr/bin/env bash
# The GPU job: benchmarks/gpu/run.sh STAGE... [--minutes N] [--wheels DIR] [--data FILE] [--out DIR] [--rehearse]
# docs/gpu.md explains it; --help lists the stages. Python is $PYTHON, else python3.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# -P: the current folder stays off the module path, so that the sources do not hide the package that was built from them
exec env PYTHONUNBUFFERED=1 PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" -P -m gpu "$@"
