"""Runs over its timeout and does not listen when told to stop."""

import signal
import time

signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM came; going on", flush=True))
print("running longer than allowed", flush=True)
end = time.monotonic() + 600
while time.monotonic() < end:
    time.sleep(1)
