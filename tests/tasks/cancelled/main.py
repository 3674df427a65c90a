"""Prints its progress in 60 steps, slowly enough to be cancelled half-way; keeps what it has when told to stop."""

import os
import signal
import sys
import time

OUTPUT = os.environ.get("HIVEMIND_OUTPUT", "/workspace/output")
STEPS = 60
STEP_S = float(os.environ.get("STEP_S", "0.5"))


def stop(*_):
    os.makedirs(OUTPUT, exist_ok=True)
    with open(os.path.join(OUTPUT, "partial.txt"), "w", encoding="ascii") as out:
        out.write(f"{step}\n")
    print(f"told to stop at step {step}", flush=True)
    sys.exit(143)


step = 0
signal.signal(signal.SIGTERM, stop)
for step in range(1, STEPS + 1):
    time.sleep(STEP_S)
    print(f"step {step} of {STEPS}", flush=True)
