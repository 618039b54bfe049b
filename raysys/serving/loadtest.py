"""Put load on an endpoint and say how it bore it: requests a second, latencies, refusals."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from raysys.errors import UserError
from raysys.store import replace_file

#: Bounds of a test: it is there to measure, not to harm.
MOST_CONNECTIONS, LONGEST_S = 1024, 3600.0
_SHED = (429, 503)


@dataclass
class Load:
    """What came of a load test.

    Attributes:
        seconds: how long it took.
        started, took: (n,) seconds of each answered request since the start, and until its answer.
        statuses: status → requests; 0: no answer.
        unanswered: why there was no answer → requests.
        without_retry_after: refusals (429, 503) that do not say when to come again.
    """

    seconds: float = 0.0
    started: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0

    def figures(self) -> dict[str, float]:
        """rps of 200s, percentiles of their latency in milliseconds, and counts."""
        ok = self.statuses[200]
        shed = sum(self.statuses[status] for status in _SHED)
        found = {
            "rps": round(ok / max(self.seconds, 1e-9), 1),
            "requests": float(self.statuses.total()),
            "ok": float(ok),
            "shed": float(shed),
            "errors": float(self.statuses.total() - ok - shed),
            "errors_5xx": float(
                sum(n for status, n in self.statuses.items() if status >= 500 and status != 503)
            ),
            "no_answer": float(self.statuses[0]),
            "without_retry_after": float(self.without_retry_after),
        }
        if self.took:
            for percent, value in zip(
                (50, 95, 99), np.percentile(self.took, [50, 95, 99]), strict=True
            ):
                found[f"p{percent}_ms"] = round(1000 * float(value), 2)
        return found


def loopback(url: str) -> bool:
    """Whether a URL is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def put_load(
    url: str,
    key: str,
    bodies: Sequence[dict[str, Any]],
    *,
    connections: int,
    seconds: float,
    rate: float | None = None,
    timeout_s: float = 10.0,
    elsewhere: bool = False,
) -> Load:
    """Send requests for some seconds.

    Args:
        url: of the route, such as http://127.0.0.1:8000/v1/recommend.
        bodies: sent in turn.
        connections: that are open, each with one request at a time.
        rate: requests a second over all connections; none: as fast as answers come.
        timeout_s: after which a request counts as without an answer.
        elsewhere: allow another machine than this one.

    Raises:
        UserError: another machine, or bounds that are exceeded.
    """
    if not elsewhere and not loopback(url):
        raise UserError(f"{url} is not on this machine: --elsewhere says that it is yours.")
    if not 1 <= connections <= MOST_CONNECTIONS or not 0 < seconds <= LONGEST_S or not bodies:
        raise UserError(
            f"a load test has 1 to {MOST_CONNECTIONS} connections, at most {LONGEST_S:.0f} s, and "
            "someone to ask for."
        )
    return asyncio.run(_load(url, key, bodies, connections, seconds, rate, timeout_s))


async def _load(
    url: str,
    key: str,
    bodies: Sequence[dict[str, Any]],
    connections: int,
    seconds: float,
    rate: float | None,
    timeout_s: float,
) -> Load:
    import aiohttp

    found = Load()
    contents = itertools.cycle([json.dumps(body).encode() for body in bodies])
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    turns = itertools.count()
    start = time.perf_counter()

    async def ask(session: aiohttp.ClientSession) -> None:
        begun = time.perf_counter()
        try:
            async with session.post(url, data=next(contents)) as answer:
                await answer.read()
                status, again = answer.status, "Retry-After" in answer.headers
        except (TimeoutError, aiohttp.ClientError) as error:
            status, again = 0, False
            found.unanswered[f"{type(error).__name__}: {error}"[:120]] += 1
        found.statuses[status] += 1
        if status == 200:
            found.started.append(begun - start)
            found.took.append(time.perf_counter() - begun)
        elif status in _SHED and not again:
            found.without_retry_after += 1

    async def connection(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() - start < seconds:
            if rate is not None:
                wait = next(turns) / rate - (time.perf_counter() - start)
                if wait > 0:
                    await asyncio.sleep(wait)
            await ask(session)

    limit = aiohttp.TCPConnector(limit=connections)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(connector=limit, timeout=timeout, headers=headers) as session:
        await asyncio.gather(*(connection(session) for _ in range(connections)))
    found.seconds = time.perf_counter() - start
    return found


def draw_load(load: Load, path: Path) -> None:
    """Answers a second and latencies over time, as a PNG file."""
    from matplotlib.figure import Figure

    started, took = np.array(load.started), 1000 * np.array(load.took)
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    places = started.astype(int)
    seconds = np.arange(places.max(initial=0) + 1)
    above.step(seconds, np.bincount(places, minlength=len(seconds)), where="post")
    above.set(ylabel="answers a second", ylim=(0, None))
    for percent in (50, 95, 99):
        values = [
            np.percentile(took[places == second], percent) if (places == second).any() else np.nan
            for second in seconds
        ]
        below.plot(seconds, values, label=f"p{percent}")
    below.set(ylabel="milliseconds", xlabel="second", ylim=(0, None))
    below.legend()
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
