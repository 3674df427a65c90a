"""A master on grpcio with code generated from proto/: written from the contract alone, to see that the contract is enough.

python_master.py [--newer]
    Prints PORT and serves on 127.0.0.1. Reads one JSON command a line from standard input (`{"do": NAME, ...}`, the
    functions of `Commands`) and prints one JSON answer a line. Ends with its standard input.

With --newer it is a master of a later minor version: see master_schema.py.
"""

import base64
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from concurrent import futures

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf import json_format

from master_book import Book
from master_schema import Schema

MAX_REQUEST = 4 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
# More than a node ever has under way, those that a silent master leaves open included.
THREADS = 64
PROOF_CONTEXT = b"hivemind-register-v1"
NONCE_LIFE_S = 60
MAX_WAIT_S = 60
# Before an offer that was refused for want of room is made again, and a cancellation that was not answered.
AGAIN_AFTER_S = 1


class Refused(Exception):
    """A call ends with this status."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code, self.text = code, text


def need(value, field):
    if not value:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is missing")
    return value


class Node:
    """A node that has proved its key."""

    def __init__(self, public_key):
        self.public_key = public_key
        self.registrations = 0
        self.version, self.labels = "", {}
        self.held = []
        self.heartbeat = self.status = None
        self.poll_id = 0
        self.last_offer = 0


class Master:
    """The calls. One lock, as everything is short but the wait of a poll."""

    def __init__(self, schema):
        self.schema = schema
        self.changed = threading.Condition()
        self.version = 1
        self.is_up = False
        self.calls = {}
        # Calls whose token was not good.
        self.strangers = 0
        # How the test wants it.
        self.is_silent = self.is_unavailable = False
        self.lose_answers = self.odd_answers = self.spoil_nonces = 0
        self.spoiled = None
        self.join_token = ""
        self.trust_level = schema.node.TRUST_LEVEL_HIGH
        self.heartbeat_interval_ms, self.lease_ms, self.token_life_ms = 1_000, 120_000, 3_600_000
        self.directives = []
        # Outlive all forgetting: the test reads them at its end.
        self.violations = []
        self.forget()

    def forget(self):
        """As on a new disk."""
        common = self.schema.common
        enums = {"Phase": common.Phase, "Outcome": common.Outcome}
        self.book = Book({name: self.words(name, enum) for name, enum in enums.items()}, self.violations)
        self.nodes = {}
        self.drop_sessions()

    def drop_sessions(self):
        """What no master keeps over a restart."""
        self.nonces, self.sessions = {}, {}

    @staticmethod
    def words(name, enum):
        prefix = name.upper() + "_"
        return lambda number: enum.Name(number).removeprefix(prefix).lower() if number in enum.values() else str(number)

    def tell(self):
        self.version += 1
        self.changed.notify_all()

    def answer(self, handle, request, context):
        """Any call: what all have in common around `handle`."""
        name = handle.__name__
        try:
            with self.changed:
                self.calls[name] = self.calls.get(name, 0) + 1
                self.changed.wait_for(lambda: not self.is_silent or not self.lives(context))
                if self.is_unavailable:
                    raise Refused(grpc.StatusCode.UNAVAILABLE, "not now")
                caller = None if name == "register" else self.caller(request, context)
                answer = handle(self, request, caller, context)
                self.tell()
                if name == "submit" and self.lose_answers > 0:
                    self.lose_answers -= 1
                    raise Refused(grpc.StatusCode.UNAVAILABLE, "this answer was to be lost")
                if name == "submit" and self.odd_answers > 0:
                    # Says nothing, or, with a newer contract, only what the node can't read.
                    self.odd_answers -= 1
                    answer = type(answer)()
                return self.schema.enrich(answer)
        except Refused as refused:
            context.abort(refused.code, refused.text)
        except Exception:
            self.violations.append(traceback.format_exc())
            raise

    def lives(self, context):
        return self.is_up and context.is_active()

    def caller(self, request, context):
        """Id of the calling node, by its token and its own word."""
        metadata = dict(context.invocation_metadata())
        token = metadata.get("authorization", "").removeprefix("Bearer ")
        node_id, ends = self.sessions.get(token, (None, 0))
        if time.monotonic() >= ends:
            self.strangers += 1
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no such session: register again")
        if need(request.node_id, "node_id") != node_id:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "node_id is not the session's")
        return node_id

    # ---- NodeService

    def register(self, request, _, context):
        response = self.schema.node.NodeRegistrationResponse
        need(request.node_id, "node_id")
        need(request.public_key, "public_key")
        if self.join_token and request.join_token != self.join_token:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "join_token is not the right one")
        node = self.nodes.get(request.node_id)
        if node is not None and node.public_key != request.public_key:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"{request.node_id} is known here with another key")
        if not request.HasField("proof"):
            nonce = os.urandom(24)
            self.nonces[nonce] = time.monotonic() + NONCE_LIFE_S
            if self.spoil_nonces > 0:
                self.spoil_nonces -= 1
                self.spoiled = nonce
            return response(nonce=nonce)
        self.check_proof(request)
        node = self.nodes.setdefault(request.node_id, Node(request.public_key))
        node.registrations += 1
        node.version, node.labels = request.version, dict(request.labels)
        node.held = [[one.key.task_id, one.key.attempt] for one in request.held]
        node.poll_id = 0
        token = secrets.token_urlsafe(24)
        self.sessions[token] = (request.node_id, time.monotonic() + self.token_life_ms / 1_000)
        return response(
            session_token=token,
            session_token_life_ms=self.token_life_ms,
            node_id=request.node_id,
            heartbeat_interval_ms=self.heartbeat_interval_ms,
            lease_ms=self.lease_ms,
            trust_level=self.trust_level,
            server_time_ms=time.time_ns() // 1_000_000,
            superseded=self.book.hold(request.node_id, request.held),
        )

    def check_proof(self, request):
        nonce = need(request.proof.nonce, "proof.nonce")
        # Good for one proof, right or wrong.
        if self.nonces.pop(nonce, 0) <= time.monotonic():
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "proof.nonce is not one that waits for a proof")
        if nonce == self.spoiled:
            # As if the node had signed another.
            nonce = nonce[::-1]
        text = b"\0".join([PROOF_CONTEXT, nonce, request.node_id.encode(), request.public_key])
        try:
            Ed25519PublicKey.from_public_bytes(request.public_key).verify(request.proof.signature, text)
        except (InvalidSignature, ValueError):
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "proof.signature does not fit nonce, id and key") from None

    def heartbeat(self, request, caller, context):
        node = self.nodes[caller]
        if node.heartbeat is None or request.sequence > node.heartbeat.sequence:
            node.heartbeat = request
        self.book.hold(caller, request.held)
        return self.schema.node.HeartbeatResponse(
            lease_ms=self.lease_ms,
            trust_level=self.trust_level,
            directives=self.take_directives(),
            cancellations=self.cancellations(caller),
            server_time_ms=time.time_ns() // 1_000_000,
        )

    def status(self, request, caller, context):
        node = self.nodes[caller]
        if node.status is None or request.sequence > node.status.sequence:
            node.status = request
        return self.schema.node.NodeStatusResponse()

    def take_directives(self):
        directives, self.directives = self.directives, []
        return directives

    # ---- TaskService

    def assign(self, request, caller, context):
        node = self.nodes[caller]
        self.settle(request, caller)
        if request.poll_id < node.poll_id:
            return self.schema.task.TaskAssignmentResponse()
        node.poll_id = request.poll_id
        self.tell()
        deadline = time.monotonic() + min(request.wait_ms / 1_000, MAX_WAIT_S)
        # One that the node has given up, or that a later one has replaced, must take nothing along.
        context.add_callback(self.wake)
        while self.lives(context) and self.nodes.get(caller) is node and node.poll_id == request.poll_id:
            answer = self.schema.task.TaskAssignmentResponse(directives=self.take_directives())
            answer.offers.extend(self.offers(request, caller, node))
            answer.cancellations.extend(self.cancellations(caller))
            left = deadline - time.monotonic()
            if answer.ByteSize() > 0 or left <= 0:
                return answer
            self.changed.wait(min(left, AGAIN_AFTER_S))
        return self.schema.task.TaskAssignmentResponse()

    def wake(self):
        with self.changed:
            self.changed.notify_all()

    def settle(self, request, caller):
        """What the node says of the offers of its last answer."""
        mine = [attempt for attempt in self.book.attempts.values() if attempt.node == caller]
        by_offer = {attempt.offer_id: attempt for attempt in mine if not attempt.is_taken}
        for attempt in filter(None, map(by_offer.get, request.taken)):
            self.book.confirm(attempt)
            self.book.forget_taken = max(0, self.book.forget_taken - 1)
            if attempt.cancel is not None:
                # An answer that was on its way when the node said that it knows nothing of the attempt.
                attempt.verdict, attempt.cancel_answers = None, []
        for refusal in request.refused:
            attempt = by_offer.get(refusal.offer_id)
            if attempt is not None:
                attempt.refusals.append([refusal.code, refusal.reason])
                attempt.node, attempt.not_before = None, time.monotonic() + AGAIN_AFTER_S
                if refusal.code not in ("capacity", "draining", "storage"):
                    self.book.end(attempt, "rejected")

    def offers(self, request, caller, node):
        """Attempts that fit. One that was in an earlier answer and is neither taken nor refused goes out again."""
        offers, free = [], request.free
        left = {name: getattr(free, name) for name in ("cpu_millis", "memory_bytes", "disk_bytes")}
        now = time.monotonic()
        for attempt in self.book.attempts.values():
            is_open = not attempt.is_taken and not attempt.is_over() and attempt.cancel is None
            if not is_open or attempt.node not in (None, caller) or len(offers) >= request.max_assignments:
                continue
            if now < attempt.not_before or any(left[name] < amount for name, amount in attempt.needs.items()):
                continue
            left = {name: left[name] - amount for name, amount in attempt.needs.items()}
            if attempt.node is None:
                node.last_offer += 1
                attempt.node, attempt.offer_id = caller, node.last_offer
            attempt.offers += 1
            attempt.phase = "offered"
            offers.append(self.schema.task.Offer(offer_id=attempt.offer_id, assignment=attempt.assignment))
        return offers

    def cancellations(self, caller):
        """All that a node has not answered: a poll is answered for each of them once in a while."""
        found, now = [], time.monotonic()
        for attempt in self.book.attempts.values():
            is_due = attempt.cancel is not None and not attempt.cancel_answers and not attempt.is_over()
            if not is_due or attempt.node != caller or now < attempt.cancelled_at + AGAIN_AFTER_S:
                continue
            attempt.cancelled_at = now
            reason, is_superseded = attempt.cancel
            found.append(self.schema.common.Cancellation(key=self.key(attempt), reason=reason, superseded=is_superseded))
        return found

    def key(self, attempt):
        return self.schema.common.AttemptKey(task_id=attempt.task, attempt=attempt.number)

    def find(self, request, caller):
        key = (need(request.key.task_id, "key.task_id"), need(request.key.attempt, "key.attempt"))
        attempt = self.book.attempts.get(key)
        return attempt if attempt is not None and attempt.node == caller else None

    def submit(self, request, caller, context):
        response = self.schema.task.TaskResultResponse
        attempt, kind = self.find(request, caller), need(request.WhichOneof("piece"), "piece")
        if attempt is None:
            return response(refused="there is no such attempt at this node")
        self.book.confirm(attempt)
        if kind == "event":
            need(request.event.number, "event.number")
            return response(event_durable=self.book.event(attempt, request.event))
        need(request.chunk.stream, "chunk.stream")
        durable = self.book.chunk(attempt, request.chunk)
        if durable is None:
            return response(refused=f"no more than {self.book.refuse_larger_than} bytes are taken")
        return response(chunk_durable=durable)

    def cancel(self, request, caller, context):
        state = self.schema.task.CancelState
        need(request.state, "state")
        attempt = self.find(request, caller)
        if attempt is not None:
            attempt.cancel_answers.append(self.words("Cancel_State", state)(request.state))
            if request.state == state.Value("CANCEL_STATE_UNKNOWN") and attempt.cancel is not None:
                self.book.end(attempt, "superseded" if attempt.cancel[1] else "cancelled")
        return self.schema.task.TaskCancelResponse()


def method(master, handle):
    return lambda servicer, request, context: master.answer(handle, request, context)


class Server:
    """The master's port, which outlives its servers: nobody else gets it while none listens."""

    def __init__(self, master):
        self.master, self.server = master, None
        self.reservation = socket.socket()
        self.reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.reservation.bind(("127.0.0.1", 0))
        self.port = self.reservation.getsockname()[1]

    def start(self):
        schema, master = self.master.schema, self.master
        self.server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=OPTIONS)
        node = {"RegisterNode": Master.register, "Heartbeat": Master.heartbeat, "ReportNodeStatus": Master.status}
        task = {"AssignTask": Master.assign, "SubmitTaskResult": Master.submit, "CancelTask": Master.cancel}
        for module, name, calls in [(schema.node_grpc, "NodeService", node), (schema.task_grpc, "TaskService", task)]:
            methods = {call: method(master, handle) for call, handle in calls.items()}
            servicer = type(name, (getattr(module, f"{name}Servicer"),), methods)
            getattr(module, f"add_{name}Servicer_to_server")(servicer(), self.server)
        assert self.server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        master.is_up = True
        self.server.start()

    def stop(self):
        if self.server is None:
            return
        with self.master.changed:
            self.master.is_up = False
            self.master.changed.notify_all()
        self.server.stop(0).wait()
        self.server = None


class Commands:
    """What the test may ask, by name."""

    def __init__(self, master, server):
        self.master, self.server = master, server

    def submit(self, assignment):
        schema = self.master.schema
        message = schema.enrich(json_format.ParseDict(assignment, schema.task.Assignment()))
        key = (message.key.task_id, message.key.attempt)
        self.master.book.submit(key, message.SerializeToString(deterministic=True), message)

    def cancel(self, task, reason):
        attempt = self.master.book.latest(task)
        return attempt is not None and self.master.book.stop(attempt, reason)

    def set(self, **values):
        """Attributes of the master or its book, such as is_silent or refuse_larger_than."""
        for name, value in values.items():
            owner = self.master.book if hasattr(self.master.book, name) else self.master
            assert hasattr(owner, name), name
            setattr(owner, name, value)

    def expire(self):
        self.master.sessions.clear()

    def view(self, task, seen, wait_ms):
        """The latest attempt, at once or when something has happened since `seen`."""
        master = self.master
        master.changed.wait_for(lambda: master.version != seen, wait_ms / 1_000)
        attempt = master.book.latest(task)
        return attempt and {"version": master.version, **master.book.view(attempt)}

    def record(self, task, attempt):
        found = self.master.book.attempts.get((task, attempt))
        return found and self.master.book.record(found)

    def read(self, task, stream, offset, max):
        return base64.b64encode(self.master.book.latest(task).content(stream)[offset : offset + max]).decode()

    def tasks(self):
        return list(dict.fromkeys(attempt.task for attempt in self.master.book.attempts.values()))

    def node(self, node):
        found = self.master.nodes.get(node)
        beat = found and found.heartbeat
        return found and {
            "registrations": found.registrations,
            "version": found.version,
            "labels": found.labels,
            "held": found.held,
            "heartbeat": beat.sequence if beat else 0,
            "state": beat.state if beat else 0,
            "reports": found.status.sequence if found.status else 0,
        }

    def counts(self):
        book = self.master.book
        return {
            "violations": self.master.violations,
            "doubles": book.doubles,
            "refused": book.refused,
            "calls": self.master.calls,
            "strangers": self.master.strangers,
        }

    def run(self, line):
        ask = json.loads(line)
        do = ask.pop("do")
        # These take the lock themselves, where they need it.
        if do == "away":
            return self.server.stop()
        if do == "back":
            with self.master.changed:
                self.master.drop_sessions()
                if ask["forget"]:
                    self.master.forget()
            return self.server.start()
        with self.master.changed:
            answer = getattr(self, do)(**ask)
            if do not in ("view", "record", "read", "tasks", "node", "counts"):
                self.master.tell()
            return answer


def main(arguments):
    master = Master(Schema("--newer" in arguments))
    server = Server(master)
    server.start()
    print(f"PORT {server.port}", flush=True)
    commands = Commands(master, server)
    for line in sys.stdin:
        print(json.dumps(commands.run(line)), flush=True)
    server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
