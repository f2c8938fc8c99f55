"""Which trial is trained on, and what is said where it cannot be."""

import json

import pytest

from sweeps.resume_best import choose
from sweeps.settings import Sweep
from trainer.config import Trial, UsageError


@pytest.fixture
def sweep(tmp_path):
    """One that has ended: of the three trials only the pick is whole."""
    sweep = Sweep(
        name="s", storage=str(tmp_path), tracking_uri="", trial=Trial(data="shards", model="resnet8"),
        regularizers=("l2",),
    )  # fmt: skip
    row = {
        "regularizer": "l2", "weight": 1.0, "strength": 1.0, "seed": 0, "status": "finished", "accuracy": 0.5,
        "robust_accuracy": 0.5, "heatmap_ssim": 0.0, "heatmap_correlation": 0.0,
    }  # fmt: skip
    ids = ("abc1", "abd2", "xyz3")
    rows = [row | {"trial_id": name, "checkpoint": f"{tmp_path}/s/trials/{name}/epoch_0002"} for name in ids]
    for name in ids:
        folder = tmp_path / "s/trials" / name
        folder.mkdir(parents=True)
        if name != "abc1":
            (folder / "weights_only.json").write_text('{"done": true}')
    (tmp_path / "s/result.json").write_text(json.dumps({"pick": "abc1", "trials": rows}))
    return sweep


def test_the_beginning_of_an_id_will_do_if_it_is_of_one_trial(sweep):
    assert choose(sweep, None).trial_id == choose(sweep, "abc").trial_id == choose(sweep, "abc1").trial_id == "abc1"
    for wrong in ("ab", "q"):
        with pytest.raises(UsageError, match=f"--trial {wrong}: sweep s has abc1, abd2, xyz3"):
            choose(sweep, wrong)


def test_what_of_only_the_weights_are_left_can_be_started_from(sweep):
    with pytest.raises(UsageError) as refused:
        choose(sweep, "xyz")
    remedy = f"--data shards --model resnet8 --checkpoint {sweep.trials_folder}/xyz3/epoch_0002"
    assert (
        f"as --keep best says, and training on needs the optimizer's state; start a sweep from them with {remedy}"
        in (str(refused.value))
    )
