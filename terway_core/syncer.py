"""Brings a file to disk: at once for all who wait for that, and beside what they do meanwhile."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path


class Syncer:
    """Calls fdatasync(2) for a file in a thread of its own, as long as somebody asks for it.

    :raises OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._problem: OSError | None = None
        self._closing = self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"sync:{path.name}", daemon=True)
        self._thread.start()

    def begin(self) -> int:
        """Have what is written to the file by now brought to disk; the number is for :meth:`wait`.

        :raises OSError: the file is closed.
        """
        with self._changed:
            if self._closed:
                raise OSError(errno.EBADF, "it is closed")
            self._asked += 1
            self._changed.notify_all()
            return self._asked

    def wait(self, number: int) -> None:
        """Return when it is there.

        :raises OSError: it could not be. Nor can anything later: after an error the kernel takes the pages
            that it could not write for written (fsync(2), "Notes").
        """
        with self._changed:
            self._changed.wait_for(lambda: self._done >= number or self._problem)
            if self._problem:
                raise self._problem

    def close(self) -> None:
        """Finish what was asked, and close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        os.close(self._file)

    def _run(self) -> None:
        while not self._problem:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._done or self._closing)
                if self._asked == self._done:
                    self._closed = True
                    return
                number = self._asked
            problem = None
            try:
                os.fdatasync(self._file)
            except OSError as error:
                problem = error
            with self._changed:
                self._done, self._problem = (self._done, problem) if problem else (number, None)
                self._changed.notify_all()
