"""A model as a function from images to logits, as attacks and heatmaps take it."""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from regularizers.base import at_least_float32
from trainer.precision import autocast

Classify = Callable[[Tensor], Tensor]
"""Images `(b, 3, h, w)` to logits `(b, k)`: a model in evaluation mode, or one with autocast around it."""


@contextlib.contextmanager
def classifier(model: nn.Module, precision: str) -> Iterator[Classify]:
    """The model as a function from images to float32 logits: evaluation mode, the training's precision.

    Meanwhile its weights want no gradient, so that attacks keep no activations for one (save those PyTorch's
    convolutions always keep).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    modes = {module: module.training for module in model.modules()}

    def classify(images: Tensor) -> Tensor:
        with autocast(images.device, precision):
            logits = model(images.clone())  # its first operation may be in place
        return at_least_float32(logits)

    with contextlib.suppress(NotImplementedError):  # an exported graph knows no other mode
        model.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield classify
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
