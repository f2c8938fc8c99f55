"""How the driver notifies trials on any node that it is about to end; imports nothing, so that its actor is light."""


class StopSwitch:
    """An actor through which a driver that is about to end has trials save their state, wherever they run."""

    def __init__(self) -> None:
        self._requested = False
        self._saved: set[str] = set()

    def request_stop(self) -> None:
        """Have every trial save its state and wait for its end."""
        self._requested = True

    def stop_requested(self) -> bool:
        """Whether trials are to save their state."""
        return self._requested

    def mark_saved(self, name: str) -> None:
        """Note that a trial has saved its state."""
        self._saved.add(name)

    def saved_trials(self) -> set[str]:
        """Names of the trials that have."""
        return self._saved
