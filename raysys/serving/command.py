"""`raysys serve`: an endpoint in the foreground."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from raysys.cluster import ClusterSettings, connect
from raysys.errors import UserError
from raysys.serving.doors import KEY_VARIABLE, load_keys
from raysys.serving.haproxy import loopback_haproxy
from raysys.serving.profiles import load_profile
from raysys.serving.published import served_run
from raysys.serving.settings import ServeSettings
from raysys.settings import override_values, parse_settings


def serve_until_stopped(
    folder: Path,
    profile: Path | None,
    port: int | None,
    overrides: Sequence[str],
    *,
    haproxy: bool,
    say: Callable[[str], None],
) -> None:
    """Start Ray and the endpoint, say one line when it answers, stop on ctrl-c or SIGTERM.

    Args:
        folder: a finished run, or a folder of published models.
        profile: a Serve config; none: the defaults.
        overrides: single settings, such as doors.burst=20.
        haproxy: HAProxy in front of Serve; see `raysys.serving.haproxy`.

    Raises:
        UserError: a setting, key or run that is none.
    """
    found = load_profile(profile)
    if port is not None:
        http = found.http_options.model_copy(update={"port": port})
        found = found.model_copy(update={"http_options": http})
    values = {"doors": {}, **found.application.args, "run": folder}
    override_values(values, overrides)
    settings = parse_settings(ServeSettings, values, source="raysys serve")
    keys, fresh = load_keys(settings.doors.key_file)
    served_run(settings.run)
    _require_free(found.http_options.host, found.http_options.port)
    with ExitStack() as stack:
        if haproxy:
            # Before Ray is imported: Serve reads them once.
            os.environ.update(stack.enter_context(loopback_haproxy()))
        stack.enter_context(connect(ClusterSettings()))
        from raysys.serving.app import start

        start(settings, keys, found)
        stopped = threading.Event()
        # Ray sets handlers of its own when it starts.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        url = f"http://{found.http_options.host}:{found.http_options.port}"
        if fresh:
            say(f"the key for this session ({KEY_VARIABLE} sets your own): {fresh}")
            say(f"try: curl -H 'Authorization: Bearer {fresh}' '{url}/v1/recommend/USER_ID?k=10'")
        say(f"serving {folder} on {url}  (ctrl-c stops it)")
        sys.stdout.flush()
        stopped.wait()


def _require_free(host: str, port: int) -> None:
    """Refuse a port that somebody listens on: Serve would share it, and answer every other call."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As a server binds: one that ended a moment ago is no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port."
        ) from None
