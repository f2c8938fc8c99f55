"""Ray Train with as few processes and as little waiting as it takes, above all inside a Ray Tune trial.

Stock Ray Train starts five to seven processes for each trial besides its workers: a controller, a queue between it and
the trial, a cleaner of its placement group, a manager of data sets that nobody gave it. In a trial of Tune the
controller lives in the trial's process and reports to Tune by itself. Workers start in the placement group that Tune
made for the trial and removes however the trial ends; those that have trained to the end train the next trial, too.
"""

import asyncio
import contextlib
from typing import Any

import ray
import torch.distributed as dist
from ray import train
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle

NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)


class LeanTrainer(TorchTrainer):
    """TorchTrainer without helpers for what we do not have; its placement group ends with the script at the latest."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # resolved to the class of Train V1
        return [callback for callback in callbacks if not isinstance(callback, NEEDLESS)]


class InTrialTrainer(LeanTrainer):
    """For the process of a Tune trial; a bundle for each worker follows its own in the placement group."""

    def _initialize_and_run_controller(self, **settings: Any) -> train.Result:
        controller = _Controller(**settings)
        try:
            asyncio.run(controller.run())
        finally:  # a trial that Tune stops leaves by SystemExit, out of a report
            controller.end_workers()
        return controller.get_result()


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
        with contextlib.suppress(RayActorError):  # who has died since is noticed by the next trial
            self.execute(_leave)
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

    def _create_workers(self, num_workers: int, *arguments: Any, **options: Any) -> list[Worker]:
        waiting, _Workers._waiting = _Workers._waiting, []
        try:
            if waiting:
                ray.get([worker.actor.get_metadata.remote() for worker in waiting])
                return waiting
        except RayActorError:
            for worker in waiting:
                ray.kill(worker.actor)
        bundles = list(range(1, num_workers + 1))  # the trial's own process has the first
        return super()._create_workers(num_workers, *arguments, **options | {"placement_group_bundle_indices": bundles})


def _leave() -> None:
    """Ray Train leaves a process group of one standing."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _Controller(TrainController):
    worker_group_cls = _Workers

    def end_workers(self) -> None:
        """End those that still train."""
        if self._worker_group is not None:
            self._worker_group.abort()
            self._worker_group = None
