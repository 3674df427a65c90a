"""Counts the primes below N in two processes, which together want four times the CPU that the task has, and reports what they got."""

import json
import math
import multiprocessing
import os
import resource
import time

OUTPUT = os.environ.get("HIVEMIND_OUTPUT", "/workspace/output")
N = int(os.environ.get("PRIMES_BELOW", "500000000"))
SEGMENT = 1 << 18
PROCESSES = 2


def primes_up_to(n):
    sieve = bytearray([1]) * (n + 1)
    sieve[:2] = b"\0\0"
    for i in range(2, math.isqrt(n) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, n + 1, i)))
    return [i for i, is_prime in enumerate(sieve) if is_prime]


BASE = primes_up_to(math.isqrt(N) + 1)


def count_segment(low):
    high = min(low + SEGMENT, N)
    sieve = bytearray([1]) * (high - low)
    for p in BASE:
        if p * p >= high:
            break
        first = max(p * p, (low + p - 1) // p * p)
        sieve[first - low :: p] = bytes(len(range(first, high, p)))
    return sieve.count(1)


def main():
    begin = time.monotonic()
    segments = range(2, N, SEGMENT)
    count = 0
    with multiprocessing.Pool(PROCESSES) as pool:
        for done, found in enumerate(pool.imap_unordered(count_segment, segments, chunksize=16), 1):
            count += found
            if done % 250 == 0:
                print(f"{done} of {len(segments)} segments, {count} primes", flush=True)
        pool.close()
        pool.join()
    wall = time.monotonic() - begin
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in usage)
    print(f"{count} primes below {N}: {cpu:.2f} s of CPU in {wall:.2f} s, {cpu / wall:.2f} CPUs")
    os.makedirs(OUTPUT, exist_ok=True)
    report = {"below": N, "count": count, "cpu_s": round(cpu, 3), "wall_s": round(wall, 3)}
    with open(os.path.join(OUTPUT, "primes.json"), "w", encoding="ascii") as out:
        json.dump(report, out)


main()
