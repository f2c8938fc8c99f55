"""Many trials: Optuna proposes, Ray Tune runs, MLflow records."""
