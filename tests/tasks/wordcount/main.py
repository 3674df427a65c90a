"""Counts the words of input.txt and writes them, most frequent first, to output/counts.json."""

import collections
import json
import os
import re

OUTPUT = os.environ.get("HIVEMIND_OUTPUT", "/workspace/output")
WORD = re.compile("[a-z]+")


def main():
    counts = collections.Counter()
    size = 0
    with open("input.txt", encoding="ascii", errors="replace") as text:
        for line in text:
            size += len(line)
            counts.update(WORD.findall(line.lower()))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    os.makedirs(OUTPUT, exist_ok=True)
    with open(os.path.join(OUTPUT, "counts.json"), "w", encoding="ascii") as out:
        json.dump(dict(ranked), out, indent=0)
    print(f"{size} characters, {sum(counts.values())} words, {len(counts)} different ones")


main()
