"""Slurm: workers as the tasks of a job array, by submitit."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brushbench.engines.workers import Report, threads_for, work
from brushbench.errors import BrushbenchError, RunError, UsageError, reason_of

__all__ = ["SlurmCrew"]

CLUSTERS = ("slurm", "local")
DEFAULTS: Mapping[str, int | str] = {"name": "brushbench", "timeout_min": 240}


class _Preempted(KeyboardInterrupt):
    """Slurm is about to end the job: the time is up, or another one needs the machine."""


class _Worker:
    """What a task of the array calls. submitit has it queued again where it is preempted or runs out of time."""

    def __call__(self, packed: bytes) -> Report:
        queue_again = signal.getsignal(signal.SIGUSR2)  # submitit's; it raises, which would count as a failed image

        def stop(*_: object) -> None:
            raise _Preempted

        signal.signal(signal.SIGUSR2, stop)
        try:
            return work(packed)
        except _Preempted:
            if callable(queue_again):
                queue_again(signal.SIGUSR2, None)
            raise

    def checkpoint(self, packed: bytes) -> Any:
        """Return what submitit queues: the same again, for what is done lies in the run's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, packed)


class SlurmCrew:
    """Workers as the tasks of a job array."""

    def __init__(self, cluster: str, folder: Path, options: Mapping[str, int | str], device: str, count: int) -> None:
        """Prepare the job.

        Args:
            cluster: ``slurm``; or ``local``: processes of this machine, to try it without Slurm.
            folder: on the shared file system, where submitit keeps each task's output and log.
            options: of the job, by submitit's names: ``slurm_partition``, ``timeout_min``, ``cpus_per_task``, …
            device: of the methods and metrics: but on ``cpu``, each worker asks for a GPU.
            count: workers.

        Raises:
            UsageError: submitit is not installed, there is no Slurm here, or it knows no such option.
        """
        try:
            import submitit
        except ImportError:
            raise UsageError(
                "--engine slurm needs submitit, which is not installed. Run pip install 'brushbench[slurm]'."
            ) from None
        if cluster not in CLUSTERS:
            raise UsageError(
                f"--engine-address {cluster!r}: for Slurm it is slurm, or local: processes of this machine, to try it."
            )
        self._submitit, self._jobs, self._folder, self._lost = submitit, list[Any](), folder, False
        given = dict(options)
        cpus = given.setdefault("cpus_per_task", threads_for(count, same_machine=cluster == "local"))
        if cluster == "slurm" and device != "cpu":
            given.setdefault("gpus_per_node", 1)
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            self._executor.update_parameters(**{**DEFAULTS, **given})
        except RuntimeError as error:
            raise UsageError(
                f"--engine slurm: {error}. Run the command where sbatch is, or try it with --engine-address local."
            ) from None
        except (NameError, TypeError, AssertionError) as error:
            raise UsageError(
                f"--engine-option: {error}. The names are submitit's: slurm_partition=gpu, timeout_min=120."
            ) from None
        self.threads = int(cpus)

    def start(self, packed: bytes, count: int) -> None:
        """Submit the array."""
        try:
            self._jobs = self._executor.map_array(_Worker(), [packed] * count)
        except self._submitit.core.utils.FailedJobError as error:
            raise BrushbenchError(
                f"sbatch refused the job: {reason_of(error)}. Change it with --engine-option."
            ) from None

    def ended(self) -> Mapping[int, Report]:
        """Return how those ended that have ended so far."""
        return {number: self._report(job) for number, job in enumerate(self._jobs, start=1) if job.done()}

    def _report(self, job: Any) -> Report:
        try:
            report: Report = job.result()
        except (self._submitit.core.utils.FailedJobError, self._submitit.core.utils.UncompletedJobError) as error:
            self._lost = True
            lost = f"the task {job.job_id} was lost ({job.state}); its output is in {self._folder}."
            return Report(lost, RunError.exit_code, str(error))
        return report

    def stop(self) -> None:
        """Cancel what is still queued or running; the output is kept where a task was lost."""
        for job in self._jobs:
            with contextlib.suppress(Exception):  # it may have ended meanwhile
                if not job.done():
                    job.cancel(check=False)
        if not self._lost:
            shutil.rmtree(self._folder, ignore_errors=True)
