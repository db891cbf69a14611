"""Writing behind the work: one thread commits what is finished while the next is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType

__all__ = ["Behind"]


class Behind:
    """A thread that commits one finished piece of work while the next is computed.

    At most one piece waits, so that memory stays flat. What a commit raises is raised by the next call, or at the end
    of the ``with`` block; what was finished before an interruption is still committed.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "commit")
        self._last: Future[None] | None = None

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:  # else the first error says more
                self.wait()
        finally:
            self._executor.shutdown()

    def submit(self, commit: Callable[[], None], owner: ExitStack) -> None:
        """Wait for the commit before this one, then begin it.

        Args:
            commit: called in the thread.
            owner: the locks of what is committed; given up after it, however it ends.
        """
        try:
            self.wait()
        except BaseException:
            owner.close()
            raise
        self._last = self._executor.submit(_commit, commit, owner)

    def wait(self) -> None:
        """Wait until all is committed."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


def _commit(commit: Callable[[], None], owner: ExitStack) -> None:
    with owner:
        commit()
