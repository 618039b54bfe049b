"""Who may call, and how often: hashed keys, and a token bucket that several replicas share."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from raysys.errors import UserError
from raysys.store import replace_file

KEY_VARIABLE = "RAYSYS_API_KEY"
_HASHED = re.compile(r"(?P<name>\S+)\s+sha256:(?P<digest>[0-9a-f]{64})")
_SHORTEST_KEY = 16


def digest_of(key: str) -> str:
    """The hash of a key as a key file holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(name: str, path: Path | None) -> tuple[str, str]:
    """A fresh key, and its line, which is added to a key file where one is given.

    Raises:
        UserError: the name has a space, is empty, or is in the file already.
    """
    if not re.fullmatch(r"\S{1,64}", name) or name.startswith("#"):
        raise UserError(f"a key's name is one word of at most 64 letters, not '{name}'.")
    key = secrets.token_urlsafe(24)
    line = f"{name} sha256:{digest_of(key)}"
    if path is not None:
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if any(entry.split(" ")[0] == name for entry in before.splitlines()):
            raise UserError(f"{path} has a key of '{name}': take its line out first.")
        text = f"{before.rstrip()}\n{line}\n".lstrip()

        def write(temporary: Path) -> None:
            temporary.touch(mode=0o600)
            temporary.write_text(text, encoding="utf-8")

        replace_file(path, write)
    return key, line


def load_keys(path: Path | None) -> tuple[dict[str, str], str | None]:
    """Digest → name of the keys that open the door.

    A file with a single word is taken as a key itself, as secret stores hand it over.

    Args:
        path: a key file; none: `RAYSYS_API_KEY`, or a fresh key.

    Returns:
        The keys, and the fresh key where one was made.

    Raises:
        UserError: no such file, no key in it, or a line that is none.
    """
    if path is None:
        given = os.environ.get(KEY_VARIABLE, "")
        key = given or secrets.token_urlsafe(24)
        return {digest_of(key): KEY_VARIABLE}, None if given else key
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"key file {path} cannot be read: {error}") from None
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(lines) == 1 and " " not in lines[0] and len(lines[0]) >= _SHORTEST_KEY:
        return {digest_of(lines[0]): path.name}, None
    keys = {}
    for number, line in enumerate(lines, start=1):
        found = _HASHED.fullmatch(line)
        if found is None:
            raise UserError(
                f"key file {path}, entry {number}: not of the form `NAME sha256:HEX`; "
                "`raysys key NAME` prints such a line."
            )
        keys[found["digest"]] = found["name"]
    if not keys:
        raise UserError(f"key file {path} holds no key: `raysys key NAME` makes one.")
    return keys, None


def who_is(key: str, keys: Mapping[str, str]) -> str | None:
    """The name of a key, compared with all of them in constant time; none: it opens nothing."""
    given, found = digest_of(key), None
    for digest, name in keys.items():
        if hmac.compare_digest(given, digest):
            found = name
    return found


class TokenBucket:
    """`rate` requests a second, and `burst` at once after a pause."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._left, self._at = float(burst), time.monotonic()

    def take(self, wanted: int) -> int:
        """So many of the wanted requests may go now."""
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        given = min(wanted, int(self._left))
        self._left -= given
        return given


class Allowances:
    """The buckets of all keys: one for all replicas."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[str, TokenBucket] = {}

    def lease(self, name: str, wanted: int) -> int:
        """Tokens that a replica may spend for a key."""
        return self._buckets.setdefault(name, TokenBucket(self._rate, self._burst)).take(wanted)


class Gate:
    """A replica's share of the allowances: asks for several tokens at a time.

    Args:
        lease: see `Allowances.lease`; across processes it is a call.
        rate, burst: of a key.
    """

    def __init__(
        self, lease: Callable[[str, int], Awaitable[int]], rate: float, burst: int
    ) -> None:
        self._lease = lease
        # What replicas hold back is little: a fiftieth of a second's worth.
        self._at_once = max(1, min(burst // 10, int(rate / 50)))
        self.retry_after_s = max(1, round(1 / rate))
        self._held: dict[str, int] = {}
        self._shut: dict[str, float] = {}
        self._pause_s = min(1.0, 1 / rate)
        self._lock = threading.Lock()

    async def enter(self, name: str) -> bool:
        """Whether a key's request may go."""
        if self._spend(name):
            return True
        # An empty bucket is not asked again by each refused request.
        if time.monotonic() < self._shut.get(name, 0.0):
            return False
        given = await self._lease(name, self._at_once)
        with self._lock:
            self._held[name] = self._held.get(name, 0) + given
            if not given:
                self._shut[name] = time.monotonic() + self._pause_s
        return self._spend(name)

    def _spend(self, name: str) -> bool:
        with self._lock:
            if self._held.get(name, 0) < 1:
                return False
            self._held[name] -= 1
            return True
