"""Ray: workers on the machines of a Ray cluster, or on one that is started here for the command.

A worker takes one CPU for each of its threads, and a GPU where the cluster has any. More workers than there is room for
wait, so that machines which join later are used; one that is lost is started again elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Mapping
from typing import Any

from brushbench.engines.workers import Report, threads_for, work
from brushbench.errors import BrushbenchError, RunError, UsageError, reason_of
from brushbench.progress import say

__all__ = ["RayCrew", "address_of"]

RETRIES = 3  # how often Ray starts a worker again that was lost
STORE = 80 << 20  # bytes of Ray's store of objects: nothing of ours goes through it


def address_of(given: str | None) -> str:
    """Return the address of the cluster: the one given, that of ``RAY_ADDRESS``, or ``local``."""
    return given or os.environ.get("RAY_ADDRESS") or "local"


def _keep_to_ourselves() -> None:
    """Let a cluster of one command's own send no statistics, and obey nobody who does not know its password."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


class RayCrew:
    """Workers as tasks of Ray."""

    def __init__(self, address: str, device: str, count: int) -> None:
        """Connect to a cluster.

        Args:
            address: of an existing one, or ``local``: one of ``count`` workers is started here.
            device: of the methods and metrics: on ``cpu`` no GPU is taken.
            count: workers.

        Raises:
            UsageError: Ray is not installed.
            BrushbenchError: no cluster answers at the address.
        """
        local = address == "local"
        if local:
            _keep_to_ourselves()  # Ray reads it when it is imported
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--engine ray needs Ray, which is not installed. Run pip install 'brushbench[ray]'."
            ) from None
        self._ray, self._tasks = ray, dict[Any, int]()
        self.threads = threads_for(count, same_machine=local)
        self._cpus = 1 if local else self.threads
        new = {"num_cpus": count, "object_store_memory": STORE, "include_dashboard": False} if local else {}
        handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **new)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BrushbenchError(
                f"No Ray cluster could be used at {address!r} ({reason_of(error)}). Start one with `ray start --head` "
                "and the same Python and Ray (where it asks for a token, set RAY_AUTH_MODE=token), or leave out "
                "--engine-address and RAY_ADDRESS for one on this machine."
            ) from None
        finally:
            signal.signal(signal.SIGTERM, handler)
        self._gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0
        if device == "auto" and not local and not self._gpus:
            say(f"The cluster at {address} has no GPU now: its workers compute on CPUs.")

    def start(self, packed: bytes, count: int) -> None:
        """Submit the workers."""
        task = self._ray.remote(work).options(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=RETRIES)
        self._tasks = {task.remote(packed): number for number in range(1, count + 1)}

    def ended(self) -> Mapping[int, Report]:
        """Return how those ended that have ended so far."""
        ready, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        return {self._tasks[task]: self._report(task) for task in ready}

    def _report(self, task: Any) -> Report:
        try:
            report: Report = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # before our code ran: another Python, no brushbench there
            return Report(
                f"the worker could not begin: {reason_of(error.cause)}.", BrushbenchError.exit_code, str(error)
            )
        except self._ray.exceptions.RayError as error:
            return Report(f"the worker was lost {RETRIES + 1} times ({type(error).__name__}).", RunError.exit_code)
        return report

    def stop(self) -> None:
        """End the workers, and the cluster that was started here."""
        for task in self._tasks:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task, force=True)
        self._ray.shutdown()
