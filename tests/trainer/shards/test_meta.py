"""meta.json and classes.json of other tools: read in the forms that say what is needed, or refused in one line."""

import json

import pytest
from foreign import CLASSES, pairs, put, refusal
from pictures import encoded

from trainer.config import UsageError
from trainer.shards import Sample, read_shards, write_shards


@pytest.mark.parametrize(
    "meta",
    [
        [{"url": "train-0.tar", "nsamples": 2}],
        {"shardlist": [{"url": "train-0.tar", "nsamples": 2}]},
        {"splits": {"train": {"filenames": ["train-0.tar"], "shard_lengths": [2]}}},
        {"splits": {"train": {"shards": [{"samples": 2}]}}},
        {"splits": {"train": {"shards": {"train-0.tar": 2}}}},
        {"splits": {"train": {"shards": {"train-0.tar": {"samples": "2"}}}}},
        {"splits": {"train": {"shards": {"train-0.tar": {"samples": -2}}}}},
        {"splits": {"train": {"shards": {"train-0.tar": {"samples": 2, "sha256": 7}}}}},
        {"splits": ["train"]},
        {"classes": 3, "splits": {}},
        7,
        "text",
    ],
    ids=json.dumps,
)
def test_another_tools_meta_json_is_one_line(tmp_path, command, capsys, meta):
    put(tmp_path, {"train-0.tar": pairs(0, 1)})
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    refused = refusal(tmp_path)
    assert refused.startswith(f"{tmp_path}/meta.json: ")
    assert "python -m trainer.shards" in refused or "list of the class names" in refused
    with pytest.raises(UsageError, match=r"meta\.json"):
        write_shards([Sample("a", encoded(0), 0)], tmp_path, "val", CLASSES, "test")
    assert command("--verify", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["meta.json", "classes.json"])
@pytest.mark.parametrize("content", [b"", b'["a", "b"', b"<html>", '["ä"]'.encode("latin-1"), b"[" * 100_000])
def test_a_damaged_json_file_is_one_line(tmp_path, name, content):
    put(tmp_path, {"train-0.tar": pairs(0, 1)})
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path}/{name}: is not valid JSON in UTF-8")


@pytest.mark.parametrize(
    "content",
    [
        ["ant", "bee", "cat"],
        {"0": "ant", "1": "bee", "2": "cat"},
        {"2": "cat", "0": "ant", "1": "bee"},
        {"cat": 2, "ant": 0, "bee": 1},
        {"0": ["ant", "an insect"], "1": ["bee", "another"], "2": ["cat", "no insect"]},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_names_are_read_from_any_form_that_says_them(tmp_path, content, encoding):
    put(tmp_path, {"train-0.tar": pairs(0, 1)})
    (tmp_path / "classes.json").write_text(json.dumps(content), encoding=encoding)
    assert read_shards(tmp_path, "train").classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    "content",
    [3, [], {}, "ant", [0, 1, 2], ["ant", None], {"1": "ant", "2": "bee"}, {"ant": 1, "bee": 2}, {"ant": 0, "bee": 0},
     {"a": "ant"}, {"0": "ant", "zero": "bee"}, {"0": {"name": "ant"}}, {"classes": ["ant"]}, [["ant"], []], True],
    ids=json.dumps,
)  # fmt: skip
def test_a_classes_json_that_names_no_classes_is_one_line(tmp_path, content):
    put(tmp_path, {"train-0.tar": pairs(0)}, classes=content)
    refused = refusal(tmp_path)
    assert refused.startswith(f"{tmp_path}/classes.json: ")
    assert "give a JSON list of the class names" in refused
