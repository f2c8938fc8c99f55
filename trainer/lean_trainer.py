"""Ray Train with as few processes and as little waiting as it takes, above all inside a Ray Tune trial.

Stock Ray Train starts five to seven processes for each trial besides its workers: a controller, a queue between it and
the trial, a cleaner of its placement group, a manager of data sets that it does not use. In a trial of Tune the
controller lives in the trial's process, which never imports PyTorch, and reports to Tune by itself. Workers start in
the placement group that Tune made for the trial and removes however the trial ends; those that have trained to the end
train the next trial, too.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray import train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)
LEAVING = 30.0  # seconds that workers are given to leave their process group


class LeanTrainer(DataParallelTrainer):
    """TorchTrainer without helpers for what we do not have; its placement group ends with the script at the latest."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, backend_config=_TorchConfig(), **settings)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, NEEDLESS)]


class InTrialTrainer(LeanTrainer):
    """For the process of a Tune trial, in whose placement group each worker has a bundle."""

    def _initialize_and_run_controller(self, **settings: Any) -> train.Result:
        controller = _Controller(**settings)
        try:
            asyncio.run(controller.run())
        finally:  # a trial that Tune stops leaves by SystemExit, out of a report
            controller.end_workers()
        return controller.get_result()


class _TorchConfig(BackendConfig):
    """Ray's own for PyTorch, whose module imports PyTorch, as it acts on workers."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchBackend

    @property
    def train_func_context(self) -> Any:
        return _on_own_device


class _TorchBackend(Backend):
    share_cuda_visible_devices = True  # NCCL finds the other GPUs of its node

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, _address_and_port)
        size = len(worker_group)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        joining = [
            worker_group.execute_single_async(rank, _join, backend, rank, size, address, port) for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        with contextlib.suppress(GetTimeoutError):  # one waits for another that is gone; they end with their processes
            ray.get(worker_group.execute_async(_leave), timeout=LEAVING)


def _address_and_port() -> tuple[str, int]:
    from ray.train._internal.utils import get_address_and_port

    return get_address_and_port()


def _join(backend: str, rank: int, size: int, address: str, port: int) -> None:
    from ray.train.torch import config

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, size, "env://")


def _leave() -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=True)  # also a group of one, which stock Ray Train keeps


@contextlib.contextmanager
def _on_own_device() -> Iterator[None]:
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


class _TunesGroup(DefaultPlacementGroupHandle):
    """The placement group of the trial, which stays when workers go."""

    def shutdown(self) -> None:
        pass


class _Workers(WorkerGroup):
    """Workers that, once they have trained to the end, wait for the next trial of this process.

    Starting them again, the import of PyTorch above all, is most of what a short trial takes.
    """

    _waiting: list[Worker] = []  # a process has one trial at a time

    def shutdown(self) -> None:
        status = self.get_latest_poll_status()
        if status is None or not status.finished or status.errors:
            super().shutdown()
            return
        state = self.get_worker_group_state()
        for callback in self._callbacks:
            callback.before_worker_group_shutdown(self)
        with contextlib.suppress(RayActorError):  # a worker that has died since is replaced by the next trial
            ray.get([worker.actor.shutdown.remote() for worker in state.workers])
        ray.kill(state.sync_actor)
        _Workers._waiting = state.workers
        self._clear_state()
        for callback in self._callbacks:
            callback.after_worker_group_shutdown(self.get_worker_group_context())

    def _create_placement_group(self, *_: Any) -> _TunesGroup:
        group = ray.util.get_current_placement_group()
        assert group is not None
        return _TunesGroup(group)

    def _create_workers(self, num_workers: int, placement_group: Any, *arguments: Any, **options: Any) -> list[Worker]:
        waiting, _Workers._waiting = _Workers._waiting, []
        try:
            if waiting:
                ray.get([worker.actor.get_metadata.remote() for worker in waiting])
                return waiting
        except RayActorError:
            for worker in waiting:
                ray.kill(worker.actor)
        bundles = len(placement_group.bundle_specs)
        options["placement_group_bundle_indices"] = list(range(bundles - num_workers, bundles))  # the first may be ours
        return super()._create_workers(num_workers, placement_group, *arguments, **options)


class _Controller(TrainController):
    worker_group_cls = _Workers

    def end_workers(self) -> None:
        """End those that still train."""
        if self._worker_group is not None:
            self._worker_group.abort()
            self._worker_group = None
