"""Lets a child process allocate more than the task's memory, and ends with exit code 0 all the same."""

import os

MIB = 1 << 20
LIMIT = 1024 * MIB

child = os.fork()
if child == 0:
    kept = []
    while len(kept) * MIB < LIMIT:
        # Written, not only promised: each page counts.
        kept.append(b"x" * MIB)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(f"the child ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "the child got its memory")
