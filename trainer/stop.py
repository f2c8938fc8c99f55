"""How trials hear, wherever they run, that the driver is about to end; imports nothing, so that its actor is light."""


class StopSwitch:
    """An actor through which a driver that is about to end asks trials to save their state, wherever they run."""

    def __init__(self) -> None:
        self._asked = False
        self._saved: set[str] = set()

    def ask(self) -> None:
        """Tell every trial to save its state and to wait for its end."""
        self._asked = True

    def asked(self) -> bool:
        """Whether trials are to save their state."""
        return self._asked

    def save(self, name: str) -> None:
        """Note that a trial has saved its state."""
        self._saved.add(name)

    def saved(self) -> set[str]:
        """Names of the trials that have."""
        return self._saved
