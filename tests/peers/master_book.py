"""What python_master.py knows of attempts: where each is, and its record as it arrived. No calls, no clock, no locks.

What can't be by the contract, such as other content under the same number, goes into `violations`; the test reads them.
"""

import hashlib

# Defaults of an assignment, where the master must know them to see what fits.
DEFAULT_NEEDS = {"cpu_millis": 1_000, "memory_bytes": 512 << 20, "disk_bytes": 1 << 30}


class Stream:
    """Bytes of one stream in one epoch."""

    def __init__(self, start):
        # Where it begins here: beyond 0 only where an earlier life of the master had the rest.
        self.start = start
        self.data = bytearray()
        # Parts that were refused; here they are zeros.
        self.gaps = []
        self.end = None

    def durable(self):
        return self.start + len(self.data)

    def refuse(self, offset, size):
        end = offset + size
        if end > self.durable():
            self.gaps.append([offset, end])
            self.data.extend(bytes(end - self.durable()))

    def take(self, chunk):
        """Adds what is new. Returns whether some of it was known, and what is wrong with that."""
        at, known = chunk.offset - self.start, self.durable() - chunk.offset
        wrong = None
        if known < 0 and not chunk.after_gap:
            # A hole: the answer says where to go on.
            return False, None
        if known < 0:
            # What is gone at the node will never come.
            self.refuse(self.durable(), -known)
            known = 0
        double = chunk.data[:known]
        if at >= 0 and self.data[at : at + len(double)] != double:
            wrong = f"other bytes at offset {chunk.offset}"
        self.data.extend(chunk.data[known:])
        end = chunk.offset + len(chunk.data)
        is_double = bool(double) or (chunk.last and self.end is not None)
        if chunk.last:
            if self.end not in (None, end):
                wrong = f"ends at {end} and at {self.end}"
            self.end = end
        if self.end is not None and self.durable() > self.end:
            wrong = f"goes on behind its end at {self.end}"
        return is_double, wrong


class Attempt:
    """A try at a task."""

    def __init__(self, key, assignment=None, message=None):
        self.task, self.number = key
        # The exact bytes that each offer carries; None where a node told of an attempt that is not known here.
        self.assignment = assignment
        self.needs = {name: getattr(message, name, 0) or least for name, least in DEFAULT_NEEDS.items()}
        self.node = None
        self.offer_id = None
        # How often it was offered, and before when it is not offered again after a refusal.
        self.offers = 0
        self.not_before = 0
        # When its cancellation was last sent.
        self.cancelled_at = 0
        self.is_taken = assignment is None
        self.refusals = []
        self.cancel = None
        self.cancel_answers = []
        # How it ended here, where no node had it.
        self.verdict = None
        self.phase = "waiting"
        self.events = {}
        self.last_event = None if assignment is None else 0
        self.final = None
        self.streams = {}

    def is_over(self):
        return self.final is not None or self.verdict is not None

    def is_complete(self):
        if self.verdict is not None:
            return True
        ends = self.final.streams if self.final is not None else []
        arrived = [self.streams.get((end.stream, end.epoch)) for end in ends]
        are_here = all(stream and stream.durable() >= end.bytes for stream, end in zip(arrived, ends, strict=True))
        return self.final is not None and are_here

    def content(self, number):
        """All of a stream: the epochs of the output one after the other, of a file the last one."""
        epochs = sorted(epoch for stream, epoch in self.streams if stream == number)
        parts = [self.streams[number, epoch].data for epoch in (epochs if number < 16 else epochs[-1:])]
        return b"".join(parts)

    def notes(self):
        return [event.note for event in self.events.values() if event.WhichOneof("kind") == "note"]


class Book:
    """All attempts."""

    def __init__(self, words, violations):
        # Names of the contract's enum values.
        self.words = words
        self.violations = violations
        self.attempts = {}
        # Pieces that had come before, and had the same content.
        self.doubles = 0
        self.refused = 0
        # Chunks with more bytes are refused for ever.
        self.refuse_larger_than = None
        # So many confirmations by a poll are forgotten, and until then all others.
        self.forget_taken = 0

    def submit(self, key, assignment, message):
        assert key not in self.attempts, f"{key} exists"
        for other in self.attempts.values():
            if other.task == key[0]:
                assert other.number < key[1], f"{key} is older than {other.number}"
                self.stop(other, "a later attempt has replaced it", True)
        self.attempts[key] = Attempt(key, assignment, message)

    def stop(self, attempt, reason, is_superseded=False):
        """Ends an attempt: here, where no node can have it, else by a cancellation."""
        if attempt.is_over():
            return False
        if attempt.offers == 0 and not attempt.is_taken:
            self.end(attempt, "superseded" if is_superseded else "cancelled")
        else:
            attempt.cancel = (reason, is_superseded)
            attempt.cancel_answers = []
        return True

    def end(self, attempt, verdict):
        if not attempt.is_over():
            attempt.verdict, attempt.phase = verdict, "delivered"

    def latest(self, task):
        found = [attempt for attempt in self.attempts.values() if attempt.task == task]
        return max(found, key=lambda attempt: attempt.number, default=None)

    def confirm(self, attempt):
        """A node says, in whatever way, that it has the attempt."""
        if self.forget_taken == 0:
            attempt.is_taken = True

    def hold(self, node_id, held):
        """A node tells what it holds. Returns those that later attempts have replaced."""
        replaced = []
        for one in held:
            key = (one.key.task_id, one.key.attempt)
            attempt = self.attempts.setdefault(key, Attempt(key))
            attempt.node = node_id
            self.confirm(attempt)
            latest = self.latest(key[0])
            if latest.number > key[1]:
                replaced.append(one.key)
        return replaced

    def event(self, attempt, event):
        """Returns the number up to which all events are here."""
        if attempt.last_event is None:
            attempt.last_event = event.number - 1
        if event.number <= attempt.last_event:
            known = attempt.events.get(event.number, event)
            self.doubles += 1
            if known.SerializeToString(deterministic=True) != event.SerializeToString(deterministic=True):
                self.violations.append(f"{attempt.task}: event {event.number} has other content:\n{known}\n{event}")
        elif event.number == attempt.last_event + 1:
            attempt.events[event.number] = event
            attempt.last_event = event.number
            kind = event.WhichOneof("kind")
            if kind == "phase":
                attempt.phase = self.words["Phase"](event.phase.phase)
            elif kind == "final_report":
                if attempt.final is not None:
                    self.violations.append(f"{attempt.task}: a second final report")
                attempt.final = event.final_report
            elif kind not in ("note", "alert"):
                self.violations.append(f"{attempt.task}: event {event.number} is of no kind")
        return attempt.last_event

    def chunk(self, attempt, chunk):
        """Returns the offset below which all bytes are here, or None when it will never be taken."""
        name = (chunk.stream, chunk.epoch)
        start = chunk.offset if attempt.assignment is None else 0
        stream = attempt.streams.setdefault(name, Stream(start))
        if self.refuse_larger_than is not None and len(chunk.data) > self.refuse_larger_than:
            self.refused += 1
            stream.refuse(chunk.offset, len(chunk.data))
            return None
        is_double, wrong = stream.take(chunk)
        self.doubles += is_double
        if wrong is not None:
            self.violations.append(f"{attempt.task}: stream {name}: {wrong}")
        return stream.durable()

    def view(self, attempt):
        """The attempt in words for the test."""
        outcome = self.words["Outcome"](attempt.final.outcome) if attempt.final else attempt.verdict
        is_complete = attempt.is_complete()
        return {
            "attempt": attempt.number,
            "phase": "delivered" if is_complete else attempt.phase,
            "outcome": outcome,
            "is_reported": attempt.final is not None,
            "is_complete": is_complete,
            "stdout_bytes": len(attempt.content(1)),
            "stderr_bytes": len(attempt.content(2)),
            "notes": attempt.notes(),
        }

    def record(self, attempt):
        """All that arrived of an attempt, streams by their digests."""
        streams = [
            {
                "stream": number,
                "epoch": epoch,
                "start": stream.start,
                "end": stream.durable(),
                "gaps": stream.gaps,
                "is_closed": stream.end == stream.durable(),
                "sha256": hashlib.sha256(stream.data).hexdigest(),
            }
            for (number, epoch), stream in sorted(attempt.streams.items())
        ]
        return {
            "events": [event.SerializeToString().hex() for event in attempt.events.values()],
            "streams": streams,
            "offers": attempt.offers,
            "is_taken": attempt.is_taken,
            "refusals": attempt.refusals,
            "cancel_answers": attempt.cancel_answers,
            **self.view(attempt),
        }
