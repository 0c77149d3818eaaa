"""The form of the log lines."""

import asyncio
import json
import logging
import re
import warnings
from collections.abc import Iterator
from datetime import datetime

import pytest

from federation.errors import SettingsError
from federation.logs import configure_logging, log_fields

LOGGER = logging.getLogger("federation.somewhere")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, engine = logging.getLogger(), logging.getLogger("openfl")
    kept = root.handlers[:], root.level, engine.level
    yield
    logging.captureWarnings(False)
    root.handlers, root.level = kept[0], kept[1]
    engine.setLevel(kept[2])


def events(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_tells_when_who_what_and_what_it_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("site1/trainer", experiment="to be continued", site="site1")
    LOGGER.info("starts", extra={"task": "train", "round": 3})
    line = events(capsys)[0]
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d site1/trainer INFO: starts"
        r'  experiment="to be continued" round=3 site=site1 task=train',
        line,
    )
    configure_logging("director")
    LOGGER.info("listening on localhost:50051")
    assert events(capsys)[0].endswith("director INFO: listening on localhost:50051")


def test_what_is_nearer_to_the_event_wins(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("director", experiment="process")
    with log_fields(experiment="block", round=1), log_fields(round=2):
        LOGGER.warning("one")
        LOGGER.warning("two", extra={"experiment": "event"})
    LOGGER.warning("three", extra={"round": None})
    fields = [line.partition("  ")[2] for line in events(capsys)]
    assert fields == ["experiment=block round=2", "experiment=event round=2", "experiment=process"]


def test_experiments_that_run_side_by_side_keep_their_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("director")

    async def run(name: str) -> None:
        with log_fields(experiment=name):
            await asyncio.sleep(0)
            LOGGER.info("of %s", name)

    async def both() -> None:
        await asyncio.gather(run("a"), run("b"))

    asyncio.run(both())
    assert [line.partition("INFO: ")[2] for line in events(capsys)] == ["of a  experiment=a", "of b  experiment=b"]


def test_nobody_can_forge_an_event_or_rewrite_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("director")
    forged = "2026-11-21 09:10:28 director INFO: all is well"
    LOGGER.error("site1 failed:\n%s\r\x1b[2J%s", forged, forged, extra={"site": f'x"\n{forged}'})
    first, *more = events(capsys)
    assert re.search(r'ERROR: site1 failed:  site="x\\"\\n2026.*all is well"$', first)
    assert more == [f"    {forged}", rf"    \x1b[2J{forged}"]


def test_errors_and_warnings_are_events_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("director")
    try:
        raise ArithmeticError("no such number")
    except ArithmeticError:
        LOGGER.exception("it went wrong", extra={"round": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("take care", stacklevel=1)
    lines = events(capsys)
    assert lines[0].partition("director ")[2] == "ERROR: it went wrong  round=1"
    assert "    ArithmeticError: no such number" in lines
    assert any(re.search(r"director WARNING: .*UserWarning: take care", line) for line in lines)


def test_events_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_LOG", "json")
    configure_logging("site1", site="site1")
    LOGGER.info("first line\nsecond \u2028 line", extra={"round": 3})
    try:
        raise ArithmeticError("no such number")
    except ArithmeticError:
        LOGGER.exception("it went wrong")
    first, second = map(json.loads, events(capsys))
    time = datetime.fromisoformat(first.pop("time"))
    assert abs((datetime.now(time.tzinfo) - time).total_seconds()) < 60
    assert first == {
        "process": "site1",
        "level": "INFO",
        "event": "first line\nsecond \u2028 line",
        "round": 3,
        "site": "site1",
    }
    assert second["event"] == "it went wrong"
    assert second["traceback"].endswith("ArithmeticError: no such number")


def test_a_form_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_LOG", "xml")
    with pytest.raises(SettingsError, match="environment variable KWS_LOG: 'xml'; allowed: text, json"):
        configure_logging("director")
