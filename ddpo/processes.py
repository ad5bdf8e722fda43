"""Processes that share one run: which agents and samples each owns, and how they communicate.

P processes share K agents. The agents are divided among gcd(K, P) groups, and the samples of a
group's agents among its processes. A stage with another number of agents, such as a soup's warm-up,
has its own groups.

- Gradients are summed within a group.
- Rewards and evaluations are gathered, so that every process holds the same.
- The first process makes all decisions and writes all files.

With one process every method is the identity. This is the only module that uses
`torch.distributed`.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from config.settings.errors import StoppedError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch.distributed.device_mesh import DeviceMesh


T = TypeVar("T")


class ProcessError(UserError):
    """Another process failed, died or stopped responding; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One process's part of K agents with N samples each.

    Attributes:
        agents: this process's agents, consecutive.
        samples: this process's samples of each of these agents, consecutive.
        num_agents: K, of all processes together.
        num_samples: N, of all processes together.
    """

    agents: range
    samples: range
    num_agents: int
    num_samples: int

    @classmethod
    def of(
        cls, rank: int, count: int, *, num_agents: int, num_samples: int, block: int = 1
    ) -> Share:
        """The share of process `rank` of `count`.

        The agents are divided among gcd(agents, processes) groups. The samples of a group's agents
        are divided among its processes, in whole blocks, as evenly as possible.

        Args:
            rank: 0 to count - 1.
            count: P.
            num_agents: K.
            num_samples: N, a multiple of `block`.
            block: samples that stay together.

        >>> Share.of(3, 4, num_agents=2, num_samples=10)
        Share(agents=range(1, 2), samples=range(5, 10), num_agents=2, num_samples=10)
        """
        groups = math.gcd(num_agents, count)
        size, members = num_agents // groups, count // groups
        group, member = divmod(rank, members)
        first, last = (num_samples // block * m // members * block for m in (member, member + 1))
        return cls(
            agents=range(group * size, (group + 1) * size),
            samples=range(first, last),
            num_agents=num_agents,
            num_samples=num_samples,
        )


class Processes:
    """The P processes of a run, as seen by one of them.

    Args:
        rank: of this process.
        count: P.
        device: where this process computes.
        timeout_seconds: how long to wait for another process.
        meshes: number of groups -> mesh of (groups, processes of a group), for every number of
            groups that occurs in a stage; None with one process.
        board: where each process counts its meetings and leaves its failure; None with one
            process.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        device: torch.device,
        timeout_seconds: float = 0,
        meshes: Mapping[int, DeviceMesh] | None = None,
        board: Store | None = None,
    ) -> None:
        self.rank = rank
        self.count = count
        self.device = device
        self._timeout_seconds = timeout_seconds
        self._meshes = meshes or {}
        self._board = board
        self._meetings = 0

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> Processes:
        """A single process, whatever a launcher says."""
        return cls(0, 1, torch.device(device))

    @classmethod
    def start(cls, task_counts: Iterable[int], timeout_seconds: float) -> Processes:
        """Join the processes that a launcher (torchrun, accelerate, SLURM) has started.

        Args:
            task_counts: the K of every stage of the run; they decide the groups.
            timeout_seconds: how long to wait for another process; see `patience` in
                `config/settings/derived.py`.

        Raises:
            UserError: if this process has no device, or the others cannot be reached.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        device = own_device()
        if count == 1:
            return cls.alone(device)
        timeout = timedelta(seconds=timeout_seconds)
        try:
            store, rank, count = next(rendezvous("env://", timeout=timeout))
            dist.init_process_group(
                backend=backends_for(device.type),
                store=store,
                rank=rank,
                world_size=count,
                timeout=timeout,
            )
            meshes = {
                groups: init_device_mesh(
                    device.type, (groups, count // groups), mesh_dim_names=("group", "member")
                )
                for groups in sorted({math.gcd(num, count) for num in task_counts})
            }
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the {count} processes could not meet: {error}") from error
        board = PrefixStore("board", store)
        return cls(rank, count, device, timeout_seconds, meshes, board)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides, writes files and prints."""
        return self.rank == 0

    def share(self, num_agents: int, num_samples: int, block: int = 1) -> Share:
        """This process's part of agents and samples, see `Share.of`."""
        return Share.of(
            self.rank, self.count, num_agents=num_agents, num_samples=num_samples, block=block
        )

    def sum_in_group(self, values: torch.Tensor, num_agents: int) -> None:
        """Add up a tensor over the processes that share agents with this one, in place.

        Args:
            values: of this process's share.
            num_agents: K, of all processes; one of the `task_counts` of `start`.
        """
        groups = math.gcd(num_agents, self.count)
        if groups < self.count:
            with self._meeting("the gradients of its group"):
                dist.all_reduce(values, group=self._meshes[groups].get_group("member"))

    def sum(self, values: torch.Tensor) -> None:
        """Add up a tensor over all processes, in place."""
        if self.count > 1:
            with self._meeting("the sums of all processes"):
                dist.all_reduce(values)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._meeting("the results of all processes"):
            dist.all_gather_object(values, value)
        return values

    def join(self, values: torch.Tensor, num_agents: int) -> torch.Tensor:
        """Put the shares of all processes together: (agents, samples, ...) to (K, N, ...).

        Shares without samples are left out, so their further dimensions do not matter.
        """
        parts = self.gather(values)
        members = self.count // math.gcd(num_agents, self.count)
        groups = []
        for first in range(0, self.count, members):
            group = parts[first : first + members]
            groups.append(torch.cat([part for part in group if part.shape[1]] or group[:1], dim=1))
        return torch.cat(groups)

    def each_group(self, value: T, num_agents: int) -> list[T]:
        """The value of each group's first process, in the order of the agents."""
        members = self.count // math.gcd(num_agents, self.count)
        return [v for v in self.gather(None if self.rank % members else value) if v is not None]

    def by_first(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the first process; all processes get its result or its failure.

        Raises:
            ProcessError: in the other processes, if the function fails.
        """
        if self.count == 1:
            return function(*arguments)
        outcome: list[Any] = [None, None]
        failure = None
        if self.is_first:
            try:
                outcome[0] = function(*arguments)
            except Exception as error:
                failure, outcome = error, [None, str(error) or repr(error)]
        with self._meeting("what the first process decides"):
            dist.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise ProcessError(f"process 0 failed: {outcome[1]}")
        result: T = outcome[0]
        return result

    @contextmanager
    def fail_together(self, *errors: type[Exception]) -> Iterator[None]:
        """If the block fails in one process, all processes stop at its end with the cause.

        Nothing inside may wait for a process that could fail alone. Members of a group may exchange
        gradients: a failure there happens in all of them.

        Args:
            errors: failures that the others learn of; any other ends this process immediately.

        Raises:
            ProcessError: in the processes whose own block succeeded.
            StoppedError: in these processes, if the other one was only asked to stop.
        """
        failure = None
        try:
            yield
        except errors as error:
            failure = error
        told = None if failure is None else str(failure) or repr(failure)
        messages = self.gather((told, isinstance(failure, StoppedError)))
        if failure is not None:
            raise failure
        for rank, (message, is_stop) in enumerate(messages):
            if is_stop:
                raise StoppedError(message)
            if message is not None:
                raise ProcessError(f"process {rank} failed: {message}")

    def close(self, failure: BaseException | None = None) -> None:
        """Leave the other processes, and report a `failure` to them if there is one."""
        if self._board is None:
            return
        if failure is None:
            dist.destroy_process_group()
            return
        with suppress(RuntimeError):  # the process that keeps the board may be gone
            self._board.set(f"failure/{self.rank}", f"{type(failure).__name__}: {failure}")

    @contextmanager
    def _meeting(self, what: str) -> Iterator[None]:
        """Wait for other processes; if one does not arrive, say which one and why."""
        assert self._board is not None
        self._meetings += 1
        try:
            self._board.set(f"meeting/{self.rank}", str(self._meetings))
            yield
        except (RuntimeError, ValueError) as error:
            raise ProcessError(
                f"process {self.rank} waited for {what}, in vain. {self._absent()} ({error})"
            ) from error

    def _absent(self) -> str:
        """What the board says about the processes that did not arrive."""
        assert self._board is not None
        found = []
        try:
            for rank in range(self.count):
                key = f"failure/{rank}"
                if self._board.check([key]):
                    found.append(f"process {rank} failed: {self._board.get(key).decode()}")
                elif self._meetings_of(rank) < self._meetings:
                    found.append(
                        f"process {rank} did not arrive: it died, or hung for "
                        f"{self._timeout_seconds:g} s"
                    )
        except RuntimeError:
            found.append("the process that started the run is gone")
        return ". ".join(found) or "All arrived, but the connection broke"

    def _meetings_of(self, rank: int) -> int:
        assert self._board is not None
        key = f"meeting/{rank}"
        return int(self._board.get(key)) if self._board.check([key]) else 0


def backends_for(device_type: str) -> str:
    """Gloo for tensors on the host, and the device's own backend for tensors on the device.

    >>> backends_for("cuda")
    'cpu:gloo,cuda:nccl'
    """
    names = {kind: dist.get_default_backend_for_device(kind) for kind in ("cpu", device_type)}
    if len(names) == 1:  # with a list of one, torch would warn at the end
        return str(names["cpu"])
    return ",".join(f"{kind}:{name}" for kind, name in names.items())


def own_device() -> torch.device:
    """The accelerator that this process has for itself, or the CPU.

    Raises:
        UserError: if there are more processes on this machine than accelerators.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"true", "1"}:
        return torch.device("cpu")
    local_rank, have = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if local_rank >= have:
        raise UserError(
            f"this machine has {have} devices of type {accelerator.type} and was given process "
            f"{local_rank + 1}; launch at most {have} processes on it"
        )
    torch.accelerator.set_device_index(local_rank)
    return torch.device(accelerator.type, local_rank)


def use_threads(num_threads: int) -> None:
    """Compute with this many threads on the CPU; 0 means all cores that this process may use.

    Processes on the same machine share the cores. The number is always set, because launchers set
    OMP_NUM_THREADS=1.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    own = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(num_threads or own)
