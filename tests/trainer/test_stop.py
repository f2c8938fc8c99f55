"""The switch through which trials are asked to save their state."""

from trainer.stop import StopSwitch


def test_a_request_stays_and_trials_are_counted_once():
    switch = StopSwitch()
    assert not switch.stop_requested()
    switch.request_stop()
    switch.mark_saved("a")
    switch.mark_saved("a")
    assert switch.stop_requested()
    assert switch.saved_trials() == {"a"}
