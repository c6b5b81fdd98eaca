"""A plugin of pytest: notes how each test ended as soon as it has, and ends the process of a test that hangs.

What hangs on a device cannot be interrupted. Under pytest-xdist another process takes the place of the one that ended,
and the test counts as failed.
"""

from __future__ import annotations

import faulthandler
import json
import os

import pytest

TOLD, SECONDS = "GPU_CHECK_TOLD", "GPU_CHECK_SECONDS"  # environment variables: a file of JSON lines, a test's limit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    faulthandler.dump_traceback_later(float(os.environ[SECONDS]), exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Notes:
    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        if report.outcome == "skipped":
            reason = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
        else:
            reason = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr or "")[-300:]
        row = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "reason": reason}
        with open(os.environ[TOLD], "a") as file:
            file.write(json.dumps({**row, "seconds": round(report.duration, 1)}) + "\n")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that the others report to
        config.pluginmanager.register(_Notes())
