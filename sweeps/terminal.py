"""A sweep in the terminal: its stages as lines, its trials as a live table, or lines where there is no terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars
from rich.text import Text

from sweeps.events import Event
from sweeps.messages import Advanced, Message, Note, Stage, TrialsBegan, TrialsEnded, TrialsGoOn
from sweeps.progress import Progress
from trainer.command import flag
from trainer.errors import UsageError


class Terminal(logging.Handler):
    """The callback of a sweep, and a handler for what this project logs meanwhile.

    Args:
        console: the terminal; None is that of the process.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(logging.INFO)
        self.console = console or Console()
        self._bars: Bars | None = None
        self._trials: Progress | None = None

    def __call__(self, message: Message) -> None:
        """Show a message."""
        if not isinstance(message, Advanced):
            self._end_bar()
        match message:
            case Stage(text):
                text = UsageError(text).said(flag)  # settings as flags, as errors show them
                self.console.print(Text.assemble((">", "bold"), f" {text}"), highlight=False)
            case Note(text, warning):
                text = UsageError(text).said(flag)
                self.line(f"warning: {text}" if warning else text)
            case Advanced() if self.console.is_terminal:
                self._bar(message)
            case TrialsBegan(total, epochs, slots, earlier):
                self._trials = Progress(total, epochs, self.console)
                self._trials.slots = slots
                self._trials.replay(earlier)
            case TrialsGoOn() if self._trials:
                self._trials.tick()
            case TrialsEnded() if self._trials:
                self._trials.close()
            case Event() if self._trials:
                self._trials.take(message)

    def line(self, text: str) -> None:
        """A line that stays as it is."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Show what is logged."""
        self.line(record.getMessage())

    @contextmanager
    def shown(self) -> Iterator["Terminal"]:
        """Within the block, what this project logs is shown, too; after it, the terminal is as it was."""
        levels = {logger: logger.level for logger in map(logging.getLogger, ("sweeps", "trainer"))}
        for logger in levels:
            logger.addHandler(self)
            logger.setLevel(logging.WARNING)  # importing mlflow.pytorch sets that of the root logger to ERROR
        try:
            yield self
        finally:
            for logger, level in levels.items():
                logger.removeHandler(self)
                logger.setLevel(level)
            self._end_bar()
            if self._trials:
                self._trials.close()

    def _bar(self, step: Advanced) -> None:
        if self._bars is None:
            self._bars = Bars(console=self.console, transient=True)
            self._bars.add_task("", total=1.0)
            self._bars.start()
        self._bars.update(self._bars.task_ids[0], completed=step.done, description=step.name)

    def _end_bar(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
