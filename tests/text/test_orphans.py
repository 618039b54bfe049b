from __future__ import annotations

import multiprocessing
import os
import signal
import time

import psutil
import pytest

from raysys.text.orphans import EXIT_WITH_PARENT, exit_with_parent


def engine_process():
    exit_with_parent()
    time.sleep(60)


def actor_process(sender):
    child = multiprocessing.get_context("spawn").Process(target=engine_process)
    child.start()
    sender.send(child.pid)
    time.sleep(60)


@pytest.mark.parametrize(("asked", "ends"), [("1", True), ("0", False)])
def test_an_engine_ends_when_its_parent_is_killed_outright(monkeypatch, asked, ends):
    monkeypatch.setenv(EXIT_WITH_PARENT, asked)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    actor = context.Process(target=actor_process, args=(sender,))
    actor.start()
    engine = psutil.Process(receiver.recv())
    time.sleep(3)  # the engine's Python is up
    assert engine.is_running()
    os.kill(actor.pid, signal.SIGKILL)
    actor.join()
    gone, _ = psutil.wait_procs([engine], timeout=3)
    if not ends:
        engine.kill()
    assert bool(gone) == ends
