"""Find the parameters of a model in a file of weights, whatever wraps them, and choose among several copies.

Of all dictionaries in the file, nested as they may be, and all prefixes of their names, those are taken under which
most of the model's own names are found.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainer.errors import FieldError
from trainer.shards.find import few

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of PyTorch, at any depth
BESIDE = ("total_ops", "total_params")  # that a profiler leaves in every layer
# Tensors shaped like the weights that are none: moments of optimizers, gradients.
STATISTICS = re.compile(
    r"(?<![a-z])(optims?|[a-z_]*optimi[sz]ers?|exp_avg[a-z_]*|[a-z_]*avg_sq|momentum_buf[a-z]*|grads?|gradients?)(?![a-z])"
)
# What training scripts call the weights. Under another name they may be those of the start, or of another network.
NAMED = re.compile(
    r"(module|model|net|network|backbone|(base_)?encoder(_q)?|weights|params|state)(_state)?(_dict)?|\d+"
)
# Moving averages: EMA and SWA, the momentum encoders of MoCo and BYOL, the teacher of DINO.
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?|shadow|momentum|teacher|target|encoder_k)(?![a-z])")
STUDENT = re.compile(r"(?<![a-z])student(?![a-z])")
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class WeightCopy:
    """The model's parameters as found at one place.

    Args:
        place: keys of the dictionary within the file, and the prefix there, such as `state_dict/module.`.
        tensors: parameters by the model's names.
        inside: names that would belong to the model if it had them, such as further layers of its stages.
        beside: names of other tensors beside the model's.
    """

    place: str
    tensors: dict[str, Tensor]
    inside: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def words(self) -> str:
        """The place in lower case, stateDict as state_dict."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.place).lower()

    @property
    def averaged(self) -> bool:
        return AVERAGED.search(self.words) is not None

    @property
    def named(self) -> bool:
        return all(NAMED.fullmatch(part) for part in re.split("[/.]", self.words) if part)


def find_copies(model: nn.Module, content: Any, layers: Sequence[str]) -> list[WeightCopy]:
    """The model's parameters in every dictionary that has some, under every prefix that leads to the most.

    Args:
        layers: names of the model's last layers, which may differ.
    """
    own = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}  # tables that older checkpoints hold
    found, modules = [], {name.partition(".")[0] for name in own}
    body = {name for name in own if not belongs_to(layers, name)}
    for place, tensors in dictionaries(content):
        names = _unwrapped(tensors, own)
        counts = Counter(n.removesuffix(suffix) for n in names for suffix in _suffixes(n) if suffix in body)
        most = max(counts.values(), default=0)
        prefixes = [prefix for prefix, count in counts.items() if count == most]
        for prefix in prefixes:
            here = {name.removeprefix(prefix): key for name, key in names.items() if name.startswith(prefix)}
            unknown = {name for name in here.keys() - own.keys() - buffers if not name.endswith(BESIDE)}
            inside = {name for name in unknown if name.partition(".")[0] in modules}
            others = tuple(other for other in prefixes if other != prefix and not prefix.startswith(other))
            beside = {f"{prefix}{name}" for name in unknown - inside if not f"{prefix}{name}".startswith(others)}
            beside |= {name for name in names if not name.startswith((prefix, *others))}
            kept = {name: tensors[key] for name, key in here.items() if name in own}
            where = "/".join((*place, prefix) if prefix else place)
            found.append(WeightCopy(where, kept, tuple(sorted(inside)), tuple(sorted(beside))))
    return found


def choose_copy(
    copies: list[WeightCopy], checkpoint: str, own: dict[str, Tensor], layers: Sequence[str], ema: bool
) -> tuple[WeightCopy, list[str]]:
    """The fullest copy; of several that are as full the plain one, or under `ema` the averaged one.

    One under the usual name goes before fuller ones elsewhere, so what it lacks is said and not taken from another.
    """

    def fit(copy: WeightCopy) -> tuple[int, int]:
        shaped = [name for name, value in copy.tensors.items() if value.shape == own[name].shape]
        return sum(not belongs_to(layers, name) for name in shaped), len(shaped)

    best = max(fit(copy)[0] for copy in copies)
    full = [copy for copy in copies if fit(copy)[0] == best]
    averaged = [copy for copy in full if copy.averaged]
    if ema and not averaged:
        there = ", ".join(copy.place or "the weights alone" for copy in full)
        raise FieldError(
            "ema", True, f"{checkpoint} has no moving average of the weights; it has {there}. Leave it out"
        )
    # Self-distillation publishes both, and its authors evaluate the teacher.
    plain = [copy for copy in copies if not copy.averaged and not STUDENT.search(copy.words)]
    named = [copy for copy in plain if copy.named and 2 * fit(copy)[0] > best]
    pool = averaged if ema else named or [copy for copy in plain if fit(copy)[0] == best] or averaged or full
    chosen = max(pool, key=lambda copy: (fit(copy), -copy.place.count(".")))
    notes = []
    others = [copy.place or "the bare weights" for copy in full if copy is not chosen]
    if others or chosen.averaged:
        remedy = "; ema takes a moving average" if averaged and not chosen.averaged else ""
        also = f"; also there: {', '.join(others)}{remedy}" if others else ""
        notes.append(f"weights taken from {chosen.place or 'the bare weights'} of {checkpoint}{also}")
    if chosen.beside:
        notes.append(f"no part of the model, left out of {checkpoint}: {layer_names(chosen.beside)}")
    return chosen, notes


def belongs_to(layers: Sequence[str], name: str) -> bool:
    """Whether a name belongs to the last layer, as fc.weight does, and fc.2.weight where a model has fc.weight."""
    return name.startswith(tuple(f"{layer}." for layer in layers))


def layer_names(names: Sequence[str]) -> str:
    """The layers of these names, the first of them."""
    return few(list(dict.fromkeys(name.rpartition(".")[0] or name for name in names)), SHOWN)


def dictionaries(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary of the file that holds tensors under names, and its place: the keys that lead to it."""
    if isinstance(content, list | tuple):
        content = {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, dict) or len(place) > 6:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in named.items():
        yield from dictionaries(value, (*place, key))


def _unwrapped(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, str]:
    """Names without what PyTorch's wrappers put into them, and the keys they stand for."""
    used = {part for name in own for part in name.split(".")}
    names = {".".join(p for p in key.split(".") if p not in WRAPPERS or p in used): key for key in tensors}
    return names if len(names) == len(tensors) else {key: key for key in tensors}


def _suffixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))
