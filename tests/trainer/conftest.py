"""The shard maker's command line and a small network that knows its digits."""

import sys

import pytest


@pytest.fixture
def command(monkeypatch):
    """Run the command in this process; its exit status."""
    from trainer.shards import __main__ as shards_command

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shards", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            shards_command.main()
        return stopped.value.code

    return run


@pytest.fixture(scope="session")
def trained(digits):
    """A small network that knows most digits, as a function from images to logits."""
    from trainer.config import Trial
    from trainer.fit import fit, prepare_model

    trial = Trial(
        data=str(digits), model="resnet8", epochs=2, images_per_epoch=3840, batch_size=32, learning_rate=0.05,
        batch_norm="flow", augment=False, robust_images=1,
    )  # fmt: skip
    states = []
    fit(trial, lambda metrics, state: states.append(state))
    model = prepare_model(trial, 10)
    model.load_state_dict(states[-1]["model"])
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def digit_batch(digits):
    """Images and labels of 64 digits it was not trained on."""
    from trainer.data import eval_loader
    from trainer.normalization import IMAGENET
    from trainer.preprocess import Transform
    from trainer.shards import read_shards

    loader = eval_loader(
        read_shards(digits, "val"), Transform(None, train=False), IMAGENET, rank=0, world_size=1, batch_size=64
    )
    batch = next(iter(loader.epoch()))
    return batch.images, batch.labels
