"""Where the workers of a trial run, as a value: neither Ray nor PyTorch is needed to have one."""

from dataclasses import dataclass
from typing import Literal

from trainer.cache import ShardCache
from trainer.config import check_choices
from trainer.errors import FieldError
from trainer.plain import set_types

RayTrain = Literal["lean", "stock"]
TESTED_RAY = "2.60.0"  # that of constraints.txt; `trainer.lean_trainer` rests on private parts of it


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the workers of one trial run.

    Args:
        workers: number of DDP processes of each trial.
        gpus_per_worker: number of GPUs per worker, 0 for CPU and gloo; None is 1 where the cluster has any, else 0.
        cpus_per_worker: number of CPUs per worker; None is one, and one more for each of its data-loading processes.
        cache: local copies of remote shards on every node.
        ray_train: run Ray Train with fewer processes per trial (`lean`), or as it is (`stock`, and always so with
            another Ray than the tested one).
    """

    workers: int = 1
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    cache: ShardCache = ShardCache()
    ray_train: RayTrain = "lean"

    def __post_init__(self) -> None:
        set_types(self)
        check_choices(self)
        if self.workers < 1:
            raise FieldError("workers", self.workers, "give a whole number of at least 1")
        if not 0 < self.cache.size < float("inf"):
            raise FieldError("size", self.cache.size, "give a finite number of GB above 0")
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker < float("inf"):
            raise FieldError("gpus_per_worker", self.gpus_per_worker, "give a finite number, 0 or above")
        if self.cpus_per_worker is not None and not 0 < self.cpus_per_worker < float("inf"):
            raise FieldError("cpus_per_worker", self.cpus_per_worker, "give a finite number above 0")

    @property
    def gpus(self) -> float:
        """GPUs of a worker; 0 until the cluster is known."""
        return float(self.gpus_per_worker or 0)

    @property
    def cpus(self) -> float:
        """CPUs of a worker; 1 until the cluster is known."""
        return float(1 if self.cpus_per_worker is None else self.cpus_per_worker)

    @property
    def lean(self) -> bool:
        """Whether Ray Train runs as `trainer.lean_trainer` changes it; with another Ray than the tested one never."""
        import ray  # half a second, and who asks has it already

        return self.ray_train == "lean" and ray.__version__ == TESTED_RAY

    def bundle(self) -> dict[str, float]:
        """What one worker takes, in Ray's words."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
