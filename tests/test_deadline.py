"""Deadline: whatever takes its CPU seconds is broken off, and nothing else is."""

import contextlib
import signal
import threading
import time

import pytest

from zoo.deadline import deadline
from zoo.errors import StructureError


def work(seconds):
    """Spend so much CPU in loops that catch what they can."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        with contextlib.suppress(Exception):  # as libraries have it
            sum(range(1000))


def test_what_takes_longer_is_broken_off_in_one_line_and_nothing_is_left():
    threads = threading.active_count()
    started = time.thread_time()
    with (
        pytest.raises(
            StructureError,
            match=r"^the work takes more than 0\.2 s of CPU: refused; ZOO_CPU_SECONDS=2 gives it longer, if you",
        ),
        deadline("the work", 0.2),
    ):
        work(20)

    assert time.thread_time() - started < 5
    assert threading.active_count() == threads
    work(0.5)  # of which nothing is broken off any more


def test_what_stays_below_is_left_alone_and_waiting_is_no_work():
    with deadline("the work", 0.4):
        work(0.1)
        time.sleep(0.8)
    assert not any(signal.getitimer(signal.ITIMER_PROF))


def test_the_work_of_another_thread_does_not_count():
    other = threading.Thread(target=work, args=(0.8,))
    other.start()
    with deadline("the work", 0.4):
        other.join()


def test_in_another_thread_and_beside_a_timer_of_others_nothing_is_broken_off():
    def run():
        with deadline("the work", 0.2):
            work(0.6)
            found.append("done")

    found = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    try:
        signal.setitimer(signal.ITIMER_PROF, 1000)
        run()
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 900
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert found == ["done", "done"]


def test_the_signal_goes_to_whom_it_went_before():
    def own(number, frame):
        raise AssertionError

    former = signal.signal(signal.SIGPROF, own)
    try:
        with pytest.raises(StructureError), deadline("the work", 0.2):
            work(20)
        assert signal.getsignal(signal.SIGPROF) is own
        assert not any(signal.getitimer(signal.ITIMER_PROF))
    finally:
        signal.signal(signal.SIGPROF, former)


def test_within_another_the_outer_one_holds():
    def parts():
        for _ in range(100):
            with deadline("a part", 0.2):
                work(0.1)

    with pytest.raises(StructureError, match="all takes"), deadline("all", 0.3):
        parts()


def test_what_the_work_itself_raises_goes_through():
    with pytest.raises(KeyError), deadline("the work"):
        raise KeyError


def test_the_user_of_a_slow_machine_gives_it_longer_as_the_error_advises(monkeypatch):
    monkeypatch.setenv("ZOO_CPU_SECONDS", "2")
    with deadline("the work", 0.2):
        work(0.6)
    monkeypatch.setenv("ZOO_CPU_SECONDS", "two")
    with pytest.raises(StructureError, match="ZOO_CPU_SECONDS is 'two', expected a number of seconds"), deadline("it"):
        pass
