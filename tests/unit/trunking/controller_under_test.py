"""Runs ``terway trunking controller`` again and again, each time in a process of its own that may be killed.

A process for each line of standard input; its number is the answer. It is forked from this one, where all
that a controller imports is there already, and so starts in a fraction of the time.

Usage: controller_under_test.py OPTIONS-OF-THE-CONTROLLER
"""

import importlib
import os
import signal
import sys

from terway_core.cli import main
from terway_core.cli.app import build

#: What is imported when it is needed.
LATER = (
    "kubernetes.client",
    "kubernetes.config",
    "terway_core.cloud.sdk",
    "terway_driver_trunking.controller",
)

if __name__ == "__main__":
    for module in LATER:
        importlib.import_module(module)
    build([])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who was killed is gone at once
    for _ in sys.stdin:
        if not (child := os.fork()):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sys.argv = ["terway", "trunking", "controller", *sys.argv[1:]]
            main()
            os._exit(0)
        print(child, flush=True)
