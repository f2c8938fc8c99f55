"""A sweep's settings as Python gives them."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import Sweep, presets
from sweeps.folder import DRIVER, driving, is_driven
from trainer.errors import FieldError, UsageError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 2.5}, "seeds=2.5: give a whole number"),
        ({"trials_per_regularizer": True}, "trials_per_regularizer=True: give a whole number"),
        ({"max_concurrent": "2"}, "max_concurrent='2': give a whole number or None"),
        ({"regularizers": "l2"}, "regularizers='l2': give a tuple"),
        ({"strengths": 1.0}, "strengths=1.0: give a tuple of numbers or None"),
        ({"fixed": "a=1"}, "fixed='a=1': give a mapping from names to numbers"),
        ({"fixed": {"psnr_hvs.error": "a"}}, "fixed={'psnr_hvs.error': 'a'}: give a number"),
        ({"fixed": {1: 2.0}}, "fixed={1: 2.0}: give a mapping from names"),
        ({"trial": {"epochs": 1}}, "trial={'epochs': 1}: give a Trial"),
        ({"placement": None}, "placement=None: give a Placement"),
        ({"keep": None}, "keep=None: give a string"),
        ({"regularizers": ()}, "regularizers=: give at least one name"),
        ({"trial": presets.digits(regularizer="l2")}, "regularizer=l2: each trial of a sweep gets its own; give reg"),
        ({"strengths": (1, 2), "trials_per_regularizer": 1}, "strengths=1,2: one trial runs for each of the 2, but"),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(change, message):
    with pytest.raises(FieldError) as refused:
        Sweep(name="s", **change)
    assert str(refused.value).startswith(message)


# In a process of its own, where nothing checks types but the project.
TRAINER = """
import sys
from pathlib import Path
from sweeps import Placement, Sweep, SweepResult, Trial
print({"torch", "ray", "optuna", "mlflow"} & set(sys.modules))
from sweeps import presets

for make in (
    lambda: presets.digits(epochs=1.5), lambda: presets.digits(learning_rate="0.1"), lambda: Placement(workers=2.0),
    lambda: Trial(model=None), lambda: Sweep(placement={"workers": 2}),
):
    try:
        print(make())
    except Exception as error:
        print(type(error).__name__, error)
folder = Path(sys.argv[1])
trial = Trial(data=folder, model="resnet8", learning_rate=1, mean=[0, 0.5, 1], std=[1, 1, 1])
given = Sweep(name="s", storage=folder, regularizers=["l2", "tv"], strengths=[1, 2], trial=trial)
print(repr((trial.data, trial.learning_rate, trial.mean, given.storage, given.regularizers, given.strengths)))
given.save()
print(Sweep.load("s", folder) == given)
"""


def test_trials_refuse_other_types_and_lists_paths_and_whole_numbers_are_taken_for_what_they_mean(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, tmp_path], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "set()",  # the interface is there in a moment
        "FieldError epochs=1.5: give a whole number",
        "FieldError learning_rate='0.1': give a number",
        "FieldError workers=2.0: give a whole number",
        "FieldError model=None: give a string",
        "FieldError placement={'workers': 2}: give a Placement",
        repr((str(tmp_path), 1.0, (0.0, 0.5, 1.0), str(tmp_path), ("l2", "tv"), (1.0, 2.0))),
        "True",
    ], done.stderr


def test_a_copy_of_a_sweep_is_not_taken_for_the_sweep(tmp_path):
    sweep = Sweep(name="s", storage=str(tmp_path))
    sweep.save()
    for other in ("t", "elsewhere/s"):
        shutil.copytree(tmp_path / "s", tmp_path / other)
        folder = tmp_path / other
        with pytest.raises(UsageError, match=f"^{folder} is a copy of the sweep in {tmp_path}/s, or was moved"):
            Sweep.load(folder.name, folder.parent)
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere/s")
    assert Sweep.load("s", tmp_path).folder == sweep.folder, "a link has the same paths"


def test_a_storage_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: is a file, not a folder$"):
        Sweep.load("s", tmp_path / "file")


def test_whether_a_process_drives_a_sweep_is_known_where_it_did(tmp_path):
    sweep = Sweep(name="s", storage=str(tmp_path))
    assert is_driven(sweep.local_folder) is None
    with driving(sweep):
        assert is_driven(sweep.local_folder)
    assert is_driven(sweep.local_folder) is False
    with Path(sweep.local_folder, DRIVER).open() as lock:  # the question itself keeps no driver away
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
