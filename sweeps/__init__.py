"""Many trials: Optuna proposes, Ray Tune runs, MLflow records.

    from sweeps import Sweep

    result = Sweep().run()
    result.table(), result.pick, result.front, result.trial(7).load_model()

Files in reading order:

    settings, checks, presets, folder    a sweep as a value, what it may be, settings under a name, its folder
    all_regularizers, command_line    the script that runs a sweep, and its flags
    cli, resume_best, environment    the other commands, and the environment they set
    run             from beginning to end; the files below in its order
    resuming, prepare, preflight    a sweep that goes on; what is filled in, checked, and seen by every node
    cluster, capacity, checkpoints    the Ray cluster, what fits on it, and on the disk
    embedded, start_weights, start_check    digits, start.pt, what the start checkpoint can tell apart
    provenance, recording, events    where numbers come from; the event log and who writes it
    search, proposals, searcher    what Optuna proposes, what a trial is given, the study behind Tune
    dial, dial_sampler    which strength comes next, and the same as a sampler of Optuna
    rule_stopping, early_stopping    what the selection rule would surely refuse, and Tune's schedulers
    tuning, callback, interrupt    how Tune runs the trials, reports them and is interrupted
    outcomes, trainable    what a trial is asked to do, and the process that does it
    trials, ranking, finalists, comparison, importance    how trials ended and rank, the best again, how sure that is
    finalize, results, train_on    what a sweep leaves, and more epochs of it
    tracking/       MLflow, a reader of log and storage
    messages, terminal, progress, summary, status    what people see meanwhile and at the end
    plots, report/  figures and the page
"""

from sweeps.results import SweepResult, TrialResult
from sweeps.settings import Sweep
from trainer.config import Trial
from trainer.placement import Placement

__all__ = ["Placement", "Sweep", "SweepResult", "Trial", "TrialResult"]
