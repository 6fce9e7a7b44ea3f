"""For all tests: Ctrl-C can be tried, also where it is ignored, as it is by what a shell runs in the background."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
