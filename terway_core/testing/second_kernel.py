"""Tests marked ``uml`` run in user-mode Linux, all in one boot, and are reported here like any other.

Where it cannot run they are skipped, but fail where ``CI`` is set: there nobody would notice. Inside, a
second pytest runs the same tests, from the beginning of the session on while the tests of this kernel run
here, and writes each report to a file as it comes; here each test waits for its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from terway_core.lab.uml import Machine

__all__ = ["take_part"]

#: Where the pytest inside writes its reports; by this it knows that it is inside.
_REPORTS: Final = "TERWAY_UML_REPORTS"
_MARKER: Final = "uml"
#: Seconds without a report after which the pytest inside is given up; it has limits of its own for each test.
PATIENCE: Final = 600.0


def take_part(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have the marked tests among those collected run inside, or, inside, write down what becomes of them."""
    # Last, so that no module's fixtures are set up on both sides of them.
    items.sort(key=_is_marked)
    path = os.environ.get(_REPORTS)
    config.pluginmanager.register(_Inside(config, Path(path)) if path else _Outside(config))


class _Inside:
    """Writes down what happens: one JSON document a line."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._file = path.open("w")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write({"test": report.nodeid, "report": data})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"test": nodeid, "report": None})

    def _write(self, line: object) -> None:
        self._file.write(json.dumps(line, default=str) + "\n")
        self._file.flush()

    def pytest_unconfigure(self) -> None:
        self._file.close()


class _Outside:
    """Has the marked tests run inside."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._stack = ExitStack()
        self._tests: list[str] = []
        self._run: _Run | None = None
        self._obstacle = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        marked = [item for item in session.items if _is_marked(item)]
        self._tests = [item.nodeid for item in marked]
        if marked:
            from terway_core.lab import uml

            self._obstacle = "; ".join(uml.missing())
        if self._config.pluginmanager.hasplugin("timeout"):
            for item in marked:
                item.add_marker(pytest.mark.timeout(0))  # the pytest inside looks at the time

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if self._tests and not self._obstacle and not session.config.option.collectonly:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="terway-uml-tests-")))
            self._run = self._stack.enter_context(_Run(folder, self._config.rootpath, self._tests))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if _is_marked(item):  # so it is not run inside
            reason = f"user-mode Linux cannot run: {self._obstacle}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        if self._run is None or not _is_marked(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._run.reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(self) -> None:
        self._stack.close()


class _Run:
    """One boot, with one pytest in it, which runs while it is asked for its reports."""

    def __init__(self, folder: Path, root: Path, tests: list[str]) -> None:
        self._reports = folder / "reports"
        self._output = folder / "output"
        self._chosen = folder / "tests"
        self._root = root
        self._tests = tests
        self._chosen.write_text("".join(f"{test}\n" for test in tests))
        self._found: defaultdict[str, list[dict[str, object] | None]] = defaultdict(list)
        self._read = 0
        self._problem = ""
        self._machine: Machine | None = None
        self._abandoned = False
        self._heard = (0, time.monotonic())
        self._thread = threading.Thread(target=self._work, name="user-mode Linux")

    def __enter__(self) -> _Run:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not all(None in self._found[test] for test in self._tests):
            self._abandoned = True
            if self._machine:
                self._machine.power_off()
        self._thread.join()

    def _work(self) -> None:
        from terway_core.errors import TerwayError
        from terway_core.lab import uml

        options = ["-p", "no:cacheprovider", "--basetemp=/run/pytest"]
        argv = [sys.executable, "-m", "pytest", *options, f"@{self._chosen}"]
        env = os.environ | {_REPORTS: str(self._reports)}
        try:
            with uml.booted() as self._machine, self._output.open("wb") as output:
                if not self._abandoned:
                    self._machine.run(
                        argv, cwd=self._root, env=env, stdout=output, stderr=output, waiting=self._listen
                    )
        except TerwayError as error:
            self._problem = f"{error}\n{error.details}"

    def _listen(self) -> None:
        """:raises LabError: the pytest inside has said nothing for too long."""
        from terway_core.lab.state import LabError

        size = self._reports.stat().st_size if self._reports.exists() else 0
        if size != self._heard[0]:
            self._heard = (size, time.monotonic())
        elif time.monotonic() - self._heard[1] > PATIENCE:
            raise LabError(f"nothing was heard of the tests in user-mode Linux for {PATIENCE:g} s")

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Wait for a test's reports: setup, call, teardown, or one that says why there are none."""
        while None not in self._found[item.nodeid]:
            ended = not self._thread.is_alive()  # asked before the last look
            self._look()
            if ended and None not in self._found[item.nodeid]:
                return [self._missing(item)]
            time.sleep(0.05)
        return [
            item.config.hook.pytest_report_from_serializable(config=item.config, data=_tuples(data))
            for data in self._found[item.nodeid]
            if data is not None
        ]

    def _look(self) -> None:
        if not self._reports.exists():
            return
        with self._reports.open() as file:
            file.seek(self._read)
            while (line := file.readline()).endswith("\n"):
                self._read = file.tell()
                entry = json.loads(line)
                self._found[entry["test"]].append(entry["report"])

    def _missing(self, item: pytest.Item) -> pytest.TestReport:
        output = self._output.read_text(errors="replace") if self._output.exists() else ""
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"the test was not run in user-mode Linux\n{self._problem}\n{output[-4000:]}",
            when="call",
        )


def _tuples(data: dict[str, object]) -> dict[str, object]:
    """A report as it was, before JSON had lists for tuples. (The ``longrepr`` of a skip is one.)"""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker(_MARKER) is not None
