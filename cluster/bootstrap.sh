#!/usr/bin/env bash
# Makes a machine ready for Ray: its packages, exactly those of constraints.txt, and what every process must know.
#
#     bash cluster/bootstrap.sh STORAGE
#
# STORAGE is where sweeps are kept: a folder that every machine sees, or an s3:// or gs:// URL. May be run again.
set -euo pipefail
storage=${1:?give where sweeps are kept: a folder that every machine sees, or an s3:// or gs:// URL}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$HOME/heatmap-sweeps-env

if [ -e ~/.ray/auth_token ]; then
    chmod 600 ~/.ray/auth_token
fi

if [ ! -x "$environment/bin/python" ]; then
    if ! python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'; then
        echo "$(hostname) has $(python3 --version); 3.11 to 3.14 is needed, the same on every machine" >&2
        exit 1
    fi
    python3 -m venv "$environment"
fi
# The dependencies alone: the code itself comes with each sweep, as it is then.
"$environment/bin/python" - "$project/pyproject.toml" > ~/.heatmap-sweeps-requirements <<'PYTHON'
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")
PYTHON
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$project/constraints.txt" --requirement ~/.heatmap-sweeps-requirements

cat > ~/.heatmap-sweeps <<ENVIRONMENT
export PATH=$environment/bin:\$PATH
export RAY_AUTH_MODE=token
export SWEEPS_STORAGE='$storage'
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
ENVIRONMENT
grep -qsx '. ~/.heatmap-sweeps' ~/.bashrc || echo '. ~/.heatmap-sweeps' >> ~/.bashrc
