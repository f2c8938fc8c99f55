"""Files of weights: known by their content, and nothing in them is executed."""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weight_files import assert_same, saved

from trainer.config import UsageError
from trainer.models import build_model
from trainer.weights import load_weights


def test_settings_beside_the_weights_are_not_made_but_passed_over(source, tmp_path, monkeypatch):
    for name in ("omegaconf", "omegaconf.dictconfig", "easydict"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def made(self, *arguments):
        raise AssertionError("a class of another library was used")

    config = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    easy = type("EasyDict", (dict,), {"__module__": "easydict"})
    sys.modules["omegaconf.dictconfig"].DictConfig, sys.modules["easydict"].EasyDict = config, easy
    one = config()
    one.content = {"lr": 0.1}
    content = {
        "state_dict": source.state_dict(),
        "args": argparse.Namespace(lr=0.5, out=pathlib.PurePosixPath("/tmp"), nested=argparse.Namespace(x=1)),
        "best": np.float64(93.1),
        "curve": np.arange(3.0),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "config": one,
        "hyper_parameters": easy(lr=1),
    }
    path = saved(content, tmp_path / "weights.pth.tar")
    config.__setstate__ = easy.__init__ = made
    model = build_model("resnet8", 10)
    load_weights(model, path)
    assert_same(model, source.state_dict())
    legacy = tmp_path / "legacy.bin"
    torch.save({"net": source.state_dict(), "args": argparse.Namespace()}, legacy, _use_new_zipfile_serialization=False)
    load_weights(build_model("resnet8", 10), str(legacy))


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(source, tmp_path, zipped):
    for content, words in (
        ({"state_dict": source.state_dict(), "args": Harmful(tmp_path / "made")}, r"a pickled object \(\w+.mkdir\)"),
        (source, r"a whole pickled model \(trainer.resnet.CifarResNet\)"),
        ({"model": source}, r"a whole pickled model \(trainer.resnet.CifarResNet\)"),
    ):
        path = tmp_path / "file.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match=words) as refused:
            load_weights(build_model("resnet8", 10), str(path))
        line = str(refused.value)
        assert "torch.save(model.state_dict(), FILE)" in line
        assert "weights_only" not in line
        assert "safe_globals" not in line
        assert "\x1b" not in line
        assert "\n" not in line
    assert not (tmp_path / "made").exists()


def zip_of(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npz():
    stream = io.BytesIO()
    np.savez(stream, kernel=np.zeros(3))
    return stream.getvalue()


def written(save, *arguments):
    stream = io.BytesIO()
    save(*arguments, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\n <!DOCTYPE html><html><head><title>404 Not Found</title>", "an HTML page, '404 Not Found'"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 46830571\n", "a Git LFS pointer.*git lfs pull"),
        (json.dumps({"error": "gone"}).encode(), "a JSON file"),
        (b"Not found\n", "it is text: 'Not found'"),
        (b"\x1f\x8b\x08\x00rest", "compressed with gzip; unpack it first"),
        (bytes(range(130, 255)) * 3, "its format is unknown"),
        (npz(), "torch.save did not write; it holds kernel.npy"),
        (written(torch.save, {"a": torch.zeros(500)})[:700], "its end is missing: 700 bytes"),
        (written(torch.jit.save, torch.jit.script(nn.Linear(2, 2))), "a TorchScript archive"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html><title>404</title>", "an HTML page, '404'"),
        ("<html><title>Où</title>".encode("utf-16"), "an HTML page, 'Où'"),
        (b'\xef\xbb\xbf{"error": 1}', "a JSON file"),
        (pickle.dumps({"a": 1}, protocol=4)[:-1], "it is damaged, or no file of torch.save$"),
        (bytes([40, 0, 0, 0, 0, 0, 0, 0]) + b'{"a":{"dtype":"F32","shape":[9]', "incomplete safetensors"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_called_by_its_name(content, words, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"not a readable weights file: .*({words})") as refused:
        load_weights(build_model("resnet8", 10), str(path))
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("content", [{"a": 1}, {"state_dict": {"conv1.weight": [1.0] * 5000}}])
def test_a_file_of_pickle_dump_is_called_so(content, protocol, tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UsageError, match=r"is a file of pickle.dump, not of torch.save; .*torch.save\(model"):
        load_weights(build_model("resnet8", 10), str(tmp_path / "weights.pth"))


def test_content_decides_and_not_the_name(source, tmp_path):
    for name in ("weights.pth", "weights.ckpt", "model.safetensors", "pytorch_model.bin"):
        save_file(source.state_dict(), tmp_path / name)
        model = build_model("resnet8", 10)
        load_weights(model, str(tmp_path / name))
        assert_same(model, source.state_dict())
        torch.save(source.state_dict(), tmp_path / name)
        load_weights(model, str(tmp_path / name))


def test_a_cut_legacy_file_is_named_so(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="damaged or incomplete"):
        load_weights(build_model("resnet8", 10), str(tmp_path / "w.pth"))
