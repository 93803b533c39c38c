"""The log: one JSON object a line, whatever is logged."""

import json
import logging
import sys
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terway_core.daemon import log as logs


def formatted(message="hello", *args, level=logging.INFO, extra=None, exc_info=None):
    logger = logging.getLogger("terway_core.test")
    record = logger.makeRecord(logger.name, level, "file", 1, message, args, exc_info, extra=extra)
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    return json.loads(line)


def test_fixed_fields_come_first():
    entry = formatted("took %d", 7, level=logging.WARNING, extra={"driver": "vpc"})
    assert list(entry) == ["time", "level", "logger", "msg", "driver"]
    assert (entry["level"], entry["logger"], entry["msg"]) == ("warning", "terway_core.test", "took 7")
    assert datetime.fromisoformat(entry["time"]).utcoffset() == timedelta(0)


@given(
    st.text(), st.dictionaries(st.text(min_size=1).map("x_".__add__), st.text() | st.integers() | st.none())
)
def test_any_text_is_one_line(message, extra):
    entry = formatted("%s", message, extra=extra)
    assert entry["msg"] == message
    assert {key: entry[key] for key in extra} == extra


def test_what_is_no_json_is_logged_as_text():
    assert formatted(extra={"codes": {1}})["codes"] == "{1}"


def test_exceptions_have_their_trace():
    try:
        raise ValueError("broken")
    except ValueError:
        entry = formatted(exc_info=sys.exc_info())
    assert entry["trace"].endswith("ValueError: broken")


@pytest.fixture
def logging_as_before():
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in logs._CHATTY}
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("logging_as_before")
def test_configure_sends_the_level_and_above_to_standard_error(capsys):
    logs.configure("warning")
    logging.getLogger("terway_core").info("quiet")
    logging.getLogger("terway_core").warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["msg"] for line in err.splitlines()] == ["loud"]


@pytest.mark.usefixtures("logging_as_before")
def test_debug_is_about_terway_and_not_about_every_packet(capsys):
    logs.configure("debug")
    logging.getLogger("asyncio").debug("a message")
    logging.getLogger("terway_core").debug("a step")
    assert [json.loads(line)["msg"] for line in capsys.readouterr().err.splitlines()] == ["a step"]
