"""Networks with weights of their own, and files of them."""

import torch


def noisy(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def saved(content, path):
    torch.save(content, path)
    return str(path)


def assert_same(model, state):
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
