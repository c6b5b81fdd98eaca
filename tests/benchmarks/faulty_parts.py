"""Parts of a GPU check that fail in every way there is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_check_parts.runner import Skipped, Wrong


def works(settings, report):
    report({"half": 1})
    return {"process": os.getpid(), "nan": float("nan"), "settings": settings}


def raises(settings, report):
    report({"so far": 1})
    raise ValueError("it broke")


def finds_a_wrong_result(settings, report):
    report({"error": 0.5})
    raise Wrong("a gradient")


def has_nothing_to_do(settings, report):
    raise Skipped("no device")


def hangs(settings, report):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report({"child": child.pid})
    time.sleep(600)


def dies(settings, report):
    report({"so far": 2})
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(settings, report):
    os._exit(3)


def runs_on(settings, report):
    for count in range(1, 10**6):
        report({"count": count})
        Path(settings["folder"], "begun").touch()
        time.sleep(0.1)


def waits_for_it(settings, report):
    while not Path(settings["folder"], "begun").exists():
        time.sleep(0.05)
    return {}
