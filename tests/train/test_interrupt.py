import os
import signal
import threading

import pytest

from prunefast.train import train
from prunefast.train.interrupt import StopRequest, TrainingStopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_does_what_it_did(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with StopRequest() as stop:
            assert stop.name is None
            os.kill(os.getpid(), number)
            assert (stop.name, seen) == (signal.Signals(number).name, [])
            os.kill(os.getpid(), number)
            assert seen == [number]
        os.kill(os.getpid(), number)
        assert seen == [number, number]
    finally:
        signal.signal(number, before)


def test_a_second_ctrl_c_is_a_keyboard_interrupt():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    inside = []

    def fail():
        with StopRequest():
            inside.append(signal.getsignal(signal.SIGINT))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside != [before]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and shells do for jobs in the background
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.name is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_stopped_is_not_an_ordinary_exception():
    assert issubclass(TrainingStopped, KeyboardInterrupt)
    assert not issubclass(TrainingStopped, Exception)


def test_training_in_a_thread(data, make_config):
    """Signals reach the main thread only, and only it may set handlers."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train(make_config(images=16), data)))
    thread.start()
    thread.join()
    assert results[0].images == 16
