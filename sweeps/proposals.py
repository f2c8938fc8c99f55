"""What Tune gives a trial; imports nothing, as the process of each trial reads it."""

from collections.abc import Mapping
from typing import Any, TypeVar

FIXED = "fixed"

T = TypeVar("T")


def proposal(config: dict[str, Any]) -> dict[str, Any]:
    """Regularizer, weight and seed in what Tune gives a trial: a proposal of the search, or a fixed one."""
    return config.get(FIXED, config)


def weight_of(config: dict[str, Any]) -> float:
    """The absolute weight in a trial's configuration."""
    return float(config.get(f"weight_{config['regularizer']}", 0.0))


def settings_of(config: Mapping[str, Any]) -> dict[str, float]:
    """The other settings of the regularizer in a trial's configuration: `psnr_hvs.error` is `error` of `psnr_hvs`."""
    prefix = f"{config['regularizer']}."
    return {name.removeprefix(prefix): value for name, value in config.items() if name.startswith(prefix)}


def named(regularizer: str, settings: Mapping[str, T]) -> dict[str, T]:
    """The reverse of `settings_of`."""
    return {f"{regularizer}.{name}": value for name, value in settings.items()}
