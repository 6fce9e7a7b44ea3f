"""For all tests: Ctrl-C can be tried, also where it is ignored, as it is by what a shell runs in the background; and
ONNX Runtime, which some import by themselves, tells nobody."""

import os
import signal

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
