"""What Tune gives a trial; imports nothing, as the process of each trial reads it."""

from typing import Any

FIXED = "fixed"


def proposal(config: dict[str, Any]) -> dict[str, Any]:
    """Regularizer, weight and seed in what Tune gives a trial: a proposal of the search, or a fixed one."""
    return config.get(FIXED, config)


def weight_of(config: dict[str, Any]) -> float:
    """The absolute weight in a trial's configuration."""
    return float(config.get(f"weight_{config['regularizer']}", 0.0))
