"""Bring a sweep to MLflow: a reader of its event log and of its trials' folders, each point once."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from sweeps.events import (
    Event,
    EventLog,
    FilesWritten,
    ModelSaved,
    ResultWritten,
    StartMeasured,
    SweepEnded,
    SweepStarted,
    TrialEnded,
    TrialStarted,
)
from sweeps.proposals import named
from sweeps.tracking import runs
from sweeps.tracking.cursor import SWEEP, Cursor, Cursors
from sweeps.tracking.server import connect, reason
from sweeps.trials import TrialRecord, TrialState, take
from trainer.locations import file_size, list_folder
from trainer.trial_log import GALLERY, TRIAL, points_file, read_file, read_points, read_report

POLL = 10.0  # seconds between two looks into the folders of trials that train
# Sending again would not help. The last: a server too old for what is asked.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "ENDPOINT_NOT_FOUND")
OPTIONAL = (FilesWritten, ModelSaved)  # nothing else waits for them, whatever the reason that MLflow will not take them
STATUS = {TrialState.FINISHED: "FINISHED", TrialState.FAILED: "FAILED"}  # of others, KILLED

Sent = Callable[[str, int], None]


class Uploader:
    """Sends one sweep to one MLflow.

    Args:
        folder: folder of the sweep in the storage.
        local: folder of the sweep on the machine that drives it.
        uri: address of MLflow.
        sent: callback with a run's name and a number of points, whenever MLflow has taken something.
    """

    def __init__(
        self, folder: str, local: Path, log: EventLog, uri: str, sent: Sent = lambda name, points: None
    ) -> None:
        self.folder, self.local, self.log, self.uri, self.sent = folder, local, log, uri, sent
        self.cursors = Cursors(local / "mlflow")
        self.trials: dict[str, TrialRecord] = {}
        self.refused: dict[str, str] = {}  # name of a run → why
        self._read = 0  # bytes of the log that `trials` has
        self._retried: set[int] = set()  # bytes at which events begin
        self._blocked: set[str] = set()  # ids of trials whose points are refused
        self._verified, self._looked_at = False, -POLL

    def send(self, patience: float = 0, look: bool = True, again: bool = False) -> bool:
        """Send all that there is; says whether it could, False if another process is sending.

        Args:
            patience: seconds to wait for another process.
            look: whether to look for points of trials that train, however long ago the last look was.
            again: whether to send what has been sent too.

        Raises:
            Exception: whatever MLflow's client raises for a server that is away.
        """
        with self.cursors.alone(patience) as alone:
            if alone and again:
                self.cursors.clear()
            look = look or time.monotonic() - self._looked_at >= POLL
            if alone and (look or self._grown()):
                client = connect(self.uri)
                if not self._verified:
                    self._verify(client)
                self._send_events(client)
                if look:
                    self._send_points(client)
                    self._looked_at = time.monotonic()
                self._send_refused(client)  # last: a model needs the run of its trial
            return alone

    def _grown(self) -> bool:
        cursor = self.cursors.read(SWEEP)
        return self.log.size() > cursor.offset or any(start not in self._retried for start in cursor.refused)

    def _send_events(self, client: MlflowClient) -> None:
        cursor = self.cursors.read(SWEEP)
        start = min(self._read, cursor.offset)
        for event, end in self.log.read(start):
            if start >= self._read:
                take(self.trials, event)
            if start >= cursor.offset:
                refused = self._refused(client, event)
                cursor = self.cursors.read(SWEEP)  # with the id of a run that was just created
                left = (*cursor.refused, start) if refused else cursor.refused
                self.cursors.write(SWEEP, replace(cursor, offset=end, refused=left))
                cursor = self.cursors.read(SWEEP)
            start, self._read = end, max(end, self._read)

    def _refused(self, client: MlflowClient, event: Event) -> bool:
        """Send one event; whether MLflow refuses it for good."""
        try:
            self._tell(client, event)
        except Exception as error:
            optional = isinstance(event, OPTIONAL) and _answers(client)
            if not optional and (getattr(error, "error_code", "") not in REFUSALS or isinstance(event, SweepStarted)):
                raise
            self.refused[self._name(event)] = reason(error)
            return True
        return False

    def _tell(self, client: MlflowClient, event: Event) -> None:
        sweep, points = self.cursors.read(SWEEP), 0
        match event:
            case SweepStarted():
                self._start_sweep(client, event)
            case StartMeasured():
                tags = {"mlflow.note.content": event.description}
                tags |= {"warnings": "\n".join(event.warnings)} if event.warnings else {}
                points = len(event.metrics)
                runs.log(client, sweep.run, _points(event.metrics, 0, event.time), tags=tags)
            case TrialStarted():
                self._start_trial(client, event)
            case TrialEnded():
                self._end_trial(client, event)
            case ResultWritten():
                points, tags = len(event.metrics), {"mlflow.note.content": event.description}
                runs.log(client, sweep.run, _points(event.metrics, event.step, event.time), tags=tags)
                runs.log_files(client, sweep.run, self.folder, event.files)
            case FilesWritten():
                runs.log_files(client, sweep.run, self.folder, event.files)
            case ModelSaved():
                last = [other for other in self.log if isinstance(other, ModelSaved)][-1]
                pick = event.trial_id == last.trial_id  # in whatever order they arrive
                where = (sweep.experiment, sweep.run, event.trial_id, Path(event.folder), self.local.name)
                runs.register_pick(client, *where, pick)
            case SweepEnded():
                for trial_id, trial in self.trials.items():
                    if trial.state is TrialState.INTERRUPTED and (run := self.cursors.read(trial_id).run):
                        self._send_trial(client, trial_id, {"state": trial.state.value})
                        client.set_terminated(run, "KILLED", event.time)
                client.set_terminated(sweep.run, event.status, event.time)
            case _:
                return  # an epoch's report: its points are in the trial's folder
        self.sent(self._name(event), points)

    def _start_sweep(self, client: MlflowClient, event: SweepStarted) -> None:
        cursor = self.cursors.read(SWEEP)
        artifacts = (self.local.parent / "mlartifacts").resolve().as_uri() if self.uri.startswith("sqlite") else None
        experiment = cursor.experiment or runs.find_experiment(client, artifacts)
        identity = {runs.SWEEP_TAG: event.name}
        run = runs.start_run(client, experiment, event.name, event.time, identity, event.tags)
        runs.log(client, run, params=event.params)
        if event.dataset:
            runs.log_dataset(client, run, event.dataset)
        if event.files:
            runs.log_files(client, run, self.folder, event.files)
        self.cursors.write(SWEEP, replace(cursor, run=run, experiment=experiment))

    def _start_trial(self, client: MlflowClient, event: TrialStarted) -> None:
        sweep, cursor = self.cursors.read(SWEEP), self.cursors.read(event.trial_id)
        tags = {"number": event.tag} | ({"finalist": event.regularizer} if event.repeats else {})
        if event.resumed_from:
            tags |= {"resumed_from": self.cursors.read(event.resumed_from).run or event.resumed_from}
            tags |= {"start": event.start}
        identity = {runs.TRIAL_TAG: event.trial_id, runs.PARENT_TAG: sweep.run}
        run = runs.start_run(client, sweep.experiment, event.name, event.time, identity, tags)
        self.cursors.write(event.trial_id, replace(cursor, run=run))

    def _end_trial(self, client: MlflowClient, event: TrialEnded) -> None:
        run, state = self.cursors.read(event.trial_id).run, self.trials[event.trial_id].state
        folder = self._folder(event.trial_id)
        tags = {"checkpoint": event.checkpoint, "effective_digest": event.digest, "state": state.value}
        self._send_trial(client, event.trial_id, tags)
        if file_size(f"{folder}/{GALLERY}") is not None:
            runs.log_files(client, run, folder, [GALLERY])
        client.set_terminated(run, STATUS.get(state, "KILLED"), event.time)

    def _send_points(self, client: MlflowClient) -> None:
        """Points of the trials that train."""
        for trial_id, trial in self.trials.items():
            if trial.state.runs and trial_id not in self._blocked and self.cursors.read(trial_id).run:
                try:
                    self._send_trial(client, trial_id)
                except MlflowException as error:
                    if error.error_code not in REFUSALS:
                        raise
                    self.refused[trial.started.name] = reason(error)
                    self._blocked.add(trial_id)

    def _send_trial(self, client: MlflowClient, trial_id: str, tags: dict[str, str] | None = None) -> None:
        """What a trial has written since the last time; with tags where it is the last."""
        folder, cursor, started = self._folder(trial_id), self.cursors.read(trial_id), self.trials[trial_id].started
        settings = None if cursor.described else read_file(folder, TRIAL)
        if settings is not None:
            settings |= named(settings["regularizer"], settings.pop("penalty_settings", {}))
        params = {key: str(value) for key, value in (settings or {}).items()}
        if params or (tags and not cursor.described):
            params |= {"strength": str(started.strength), "workers": str(started.workers)}
        cursor = replace(cursor, described=cursor.described or settings is not None)
        points, waiting = 0, []
        for metrics, then in _unsent(folder, cursor):
            cursor = then
            waiting += metrics
            if len(waiting) >= runs.BATCH:
                points += self._log(client, trial_id, cursor, waiting, params)
                params, waiting = {}, []
        points += self._log(client, trial_id, cursor, waiting, params, tags)
        if points:
            self.sent(started.name, points)

    def _log(
        self,
        client: MlflowClient,
        trial_id: str,
        cursor: Cursor,
        metrics: list[Metric],
        params: dict[str, str],
        tags: dict[str, str] | None = None,
    ) -> int:
        if metrics or params or tags:
            runs.log(client, cursor.run, metrics, params, tags)
            self.cursors.write(trial_id, cursor)
        return len(metrics)

    def _send_refused(self, client: MlflowClient) -> None:
        """Try once more what MLflow would not take; this process leaves alone what is refused again."""
        cursor = self.cursors.read(SWEEP)
        for start in [start for start in cursor.refused if start not in self._retried]:
            self._retried.add(start)
            event = next(self.log.read(start))[0]
            if not self._refused(client, event):
                cursor = self.cursors.read(SWEEP)
                left = tuple(other for other in cursor.refused if other != start)
                self.cursors.write(SWEEP, replace(cursor, refused=left))
                self.refused.pop(self._name(event), None)

    def _verify(self, client: MlflowClient) -> None:
        """Begin anew if what was sent is not there: another server, or one that lost its runs."""
        run = self.cursors.read(SWEEP).run
        if run and not _has(client, run):
            self.cursors.clear()
        self._verified = True

    def queued(self) -> tuple[int, int]:
        """How many points and how many events MLflow does not have."""
        cursor = self.cursors.read(SWEEP)
        events = [event for event, _ in self.log.read(cursor.offset)]
        events += [next(self.log.read(start))[0] for start in cursor.refused]
        trials = {event.trial_id for event in events if isinstance(event, TrialStarted | TrialEnded)}
        points = sum(len(event.metrics) for event in events if isinstance(event, StartMeasured | ResultWritten))
        for trial_id in trials:
            unsent = _unsent(self._folder(trial_id), self.cursors.read(trial_id))
            points += sum(len(metrics) for metrics, _ in unsent)
        return points, len(events)

    def _folder(self, trial_id: str) -> str:
        return f"{self.folder}/trials/{trial_id}"

    def _name(self, event: Event) -> str:
        trial = self.trials.get(getattr(event, "trial_id", ""))
        return trial.started.name if trial and not isinstance(event, ModelSaved) else self.local.name


def _unsent(folder: str, cursor: Cursor) -> Iterator[tuple[list[Metric], Cursor]]:
    """Epoch by epoch what a trial has written since the cursor, and the cursor once that is sent."""
    for epoch in _epochs(folder, cursor.epoch):
        report = read_report(folder, epoch)  # first: once it is there, so are all points of the epoch
        size = file_size(f"{folder}/{points_file(epoch)}") or 0
        told = read_points(folder, epoch) if size != cursor.size else []
        told += [report] if report is not None else []
        known, metrics = dict(cursor.known), []
        for point in told:
            new = {key: value for key, value in point["metrics"].items() if point["step"] > known.get(key, -1)}
            metrics += _points(new, point["step"], point["time"])
            known |= dict.fromkeys(new, point["step"])
        whole = replace(cursor, epoch=epoch, size=0, known=known)
        cursor = whole if report is not None else replace(cursor, size=size, known=known)
        yield metrics, cursor


def _points(metrics: dict[str, float], step: int, when: int) -> list[Metric]:
    return [Metric(key, value, when, step) for key, value in metrics.items()]


def _epochs(folder: str, after: int) -> list[int]:
    """Epochs of which a trial has written something, from the one after this."""
    found = set()
    for kind in ("points", "reports"):
        try:
            found |= list_folder(f"{folder}/{kind}") or set()
        except FileNotFoundError:
            continue
    numbers = {int(name.partition(".")[0].removeprefix("epoch_")) for name in found if name.startswith("epoch_")}
    return sorted(number for number in numbers if number > after)


def _answers(client: MlflowClient) -> bool:
    try:
        client.search_experiments(max_results=1)
    except Exception:
        return False
    return True


def _has(client: MlflowClient, run: str) -> bool:
    try:
        return client.get_run(run).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
