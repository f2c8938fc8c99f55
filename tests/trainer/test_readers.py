"""A batch is a function of its request, whoever reads it and whatever was read before."""

import random

import pytest
import torch

from trainer.data import LoaderOptions, spread
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform
from trainer.readers import EvalReader, TrainReader
from trainer.shards import read_shards


def reader(digits, kind, num_readers=3):
    shards = read_shards(digits, "train")
    options = LoaderOptions(normalization=IMAGENET, batch_size=16, rank=1, world_size=2, loader_workers=num_readers)
    common = {"shards": shards, "transform": Transform(None, kind == "train"), **options.for_reader()}
    if kind == "train":
        return TrainReader(**common, seed=3, steps=7)
    return EvalReader(**common, examples=spread(shards.total, 300))


def values(batch):
    return [None if part is None else part.tolist() for part in batch]


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_request_gives_the_same_batch_in_any_order_and_process(digits, kind):
    in_turn, shuffled = reader(digits, kind), reader(digits, kind)
    requests = in_turn.requests(epoch=2)
    batches = {request: values(in_turn[request]) for request in requests}
    assert len(batches) == len(requests)
    random.Random(0).shuffle(requests)
    for request in [*requests, requests[0], requests[0]]:
        assert values(shuffled[request]) == batches[request]


def test_requests_go_round_the_readers_from_any_step_on(digits):
    everything = reader(digits, "train").requests(0)
    assert [request.reader for request in everything] == [0, 1, 2, 0, 1, 2, 0]
    assert [request.batch for request in everything] == [0, 0, 0, 1, 1, 1, 2]
    assert reader(digits, "train").requests(0, first_step=4) == everything[4:]


def test_a_process_reads_on_where_it_was(digits, monkeypatch):
    """Else every batch would read its shard from the start."""
    opened = []
    begin = TrainReader._chosen
    monkeypatch.setattr(TrainReader, "_chosen", lambda self, request: opened.append(request) or begin(self, request))
    one = reader(digits, "train")
    for request in one.requests(0):
        if request.reader == 1:  # those that DataLoader gives to its second process
            one[request]
    assert len(opened) == 1


def test_evaluation_has_indices_and_training_has_none(digits):
    train, evaluation = reader(digits, "train"), reader(digits, "eval")
    assert train[train.requests(0)[0]][2] is None
    assert evaluation[evaluation.requests(0)[0]][2].dtype == torch.int64
