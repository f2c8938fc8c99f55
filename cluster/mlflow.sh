#!/usr/bin/env bash
# Starts the head's MLflow server, unless it runs: all it knows lies in ~/mlflow, and only this machine reaches it.
set -euo pipefail

if (exec 3<> /dev/tcp/127.0.0.1/5000) 2> /dev/null; then
    exit 0
fi
mkdir -p ~/mlflow
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false setsid nohup mlflow server --workers 1 \
    --host 127.0.0.1 --port 5000 --allowed-hosts 'localhost:*,127.0.0.1:*' \
    --backend-store-uri "sqlite:///$HOME/mlflow/mlflow.db" --artifacts-destination "$HOME/mlflow/artifacts" \
    > ~/mlflow/server.log 2>&1 < /dev/null &
