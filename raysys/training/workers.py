"""Several processes that train one model: who they are, and how they add up numbers.

The mathematics sees only `Workers`. The process group is opened by us and not by Ray: on one
machine it meets through a file and talks over loopback, where torch's usual rendezvous would
listen on every network interface.
"""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Workers:
    """This worker's number, and how many there are."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the worker that logs and writes."""
        return self.number == 0

    def add_up(self, values: torch.Tensor) -> None:
        """Replace `values` by their sum over all workers, the same bits on each."""
        if self.count > 1:
            dist.all_reduce(values)

    def add_up_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum every gradient over all workers; one that no worker has stays none."""
        if self.count == 1:
            return
        found = [parameter.grad is not None for parameter in parameters]
        counts = torch.tensor(found, dtype=torch.float32, device=parameters[0].device)
        dist.all_reduce(counts)
        parameters = [one for one, count in zip(parameters, counts.tolist(), strict=True) if count]
        grads = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        parts = torch.split(flat, [grad.numel() for grad in grads])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


@contextmanager
def joined_workers(use_gpu: bool) -> Iterator[Workers]:
    """The workers of the running Ray Train job, connected while the context is open."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    if workers.count == 1:
        yield workers
        return
    one_machine = context.get_local_world_size() == workers.count
    if one_machine:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    meeting = broadcast_from_rank_zero(_meeting_point(one_machine) if workers.first else None)
    dist.init_process_group(
        "nccl" if use_gpu else "gloo",
        init_method=meeting,
        rank=workers.number,
        world_size=workers.count,
    )
    try:
        yield workers
    finally:
        dist.destroy_process_group()
        if one_machine and workers.first:
            Path(meeting.removeprefix("file://")).unlink(missing_ok=True)


def _meeting_point(one_machine: bool) -> str:
    """A fresh address for each start: one left over from a killed attempt would not do."""
    if one_machine:
        return (Path(tempfile.gettempdir()) / f"raysys-{uuid.uuid4().hex}.meeting").as_uri()
    import ray

    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    return f"tcp://{address}:{port}"
