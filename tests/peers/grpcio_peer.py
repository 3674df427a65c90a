"""The independent gRPC implementation of the tests: grpcio, with raw bytes as messages.

grpcio_peer.py server [--port N] [--tls CERT KEY [--client-ca FILE]]
    Prints PORT and serves until standard input ends. The line "drain" there ends it in an orderly way.
grpcio_peer.py client URL [--ca FILE] [--cert CERT KEY]
    Reads one JSON command a line from standard input, prints one JSON answer a line.
grpcio_peer.py bench URL --calls N (--body BYTES | --upload BYTES) [--interval-ms MS] [--ca FILE]
    One connection, one call after the other; prints one line of JSON.

tonic-peer, beside this file, has the same modes and words.
"""

import hashlib
import json
import sys
import threading
import time
from concurrent import futures

import grpc

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
]
CODES = {code.value[0]: code for code in grpc.StatusCode}
out_lock = threading.Lock()


def say(line):
    with out_lock:
        print(line, flush=True)


def echo(request, context):
    seen = context.invocation_metadata()
    context.send_initial_metadata([(k, v) for k, v in seen if k.startswith("x-")])
    context.set_trailing_metadata([(k, v) for k, v in seen if k.startswith("t-")])
    return request


def size(request, context):
    return b"\x5a" * int(request)


def length(request, context):
    return str(len(request)).encode()


def status(request, context):
    wanted = json.loads(request)
    if wanted.get("head"):
        context.send_initial_metadata([("x-head", "sent")])
    context.set_trailing_metadata([("t-why", "asked")])
    code = CODES[wanted["code"]]
    if code is grpc.StatusCode.OK:
        context.set_details(wanted["message"])
        return b"fine"
    context.abort(code, wanted["message"])


def hang(request, context):
    ended = threading.Event()
    if not context.add_callback(ended.set):
        ended.set()
    say("HANGING " + request.decode())
    ended.wait()
    say("ENDED " + request.decode())
    return b""


def remaining(request, context):
    return str(context.time_remaining()).encode()


METHODS = {"Echo": echo, "Size": size, "Length": length, "Status": status, "Hang": hang, "Remaining": remaining}


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        method = METHODS.get(details.method.removeprefix("/test.Peer/"))
        return grpc.unary_unary_rpc_method_handler(method) if method else None


def read(path):
    with open(path, "rb") as file:
        return file.read()


def serve(arguments):
    port, tls, client_ca = 0, None, None
    while arguments:
        word = arguments.pop(0)
        if word == "--port":
            port = int(arguments.pop(0))
        elif word == "--tls":
            tls = [read(arguments.pop(0)) for _ in range(2)]
        elif word == "--client-ca":
            client_ca = read(arguments.pop(0))
    server = grpc.server(futures.ThreadPoolExecutor(32), handlers=[Handler()], options=OPTIONS)
    address = f"127.0.0.1:{port}"
    if tls:
        credentials = grpc.ssl_server_credentials([(tls[1], tls[0])], client_ca, client_ca is not None)
        port = server.add_secure_port(address, credentials)
    else:
        port = server.add_insecure_port(address)
    server.start()
    say(f"PORT {port}")
    for line in sys.stdin:
        # Ends in an orderly way: GOAWAY first, then time for the calls under way.
        if line.strip() == "drain":
            server.stop(30)
    server.stop(0).wait()


def shown(metadata):
    return [[k, v.hex() if k.endswith("-bin") else v] for k, v in metadata or []]


def result(call, wants_metadata):
    try:
        body = call.result()
        answer = {"code": 0, "len": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    except grpc.RpcError as error:
        answer = {"code": error.code().value[0], "message": error.details()}
    except grpc.FutureCancelledError:
        return {"code": 1, "message": "cancelled here"}
    if wants_metadata:
        answer["head"] = shown(call.initial_metadata())
        answer["trailers"] = shown(call.trailing_metadata())
    return answer


def channel_to(url, ca, cert=None):
    scheme, _, target = url.rpartition("://")
    if scheme != "https":
        return grpc.insecure_channel(target, options=OPTIONS)
    chain, key = cert or (None, None)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, chain), options=OPTIONS)


def client(url, arguments):
    ca, cert = None, None
    while arguments:
        word = arguments.pop(0)
        if word == "--ca":
            ca = read(arguments.pop(0))
        elif word == "--cert":
            cert = [read(arguments.pop(0)) for _ in range(2)]
    channel = channel_to(url, ca, cert)
    calls = {}
    for line in sys.stdin:
        command = json.loads(line)
        key = command["id"]
        if command["do"] == "start":
            body = bytes.fromhex(command.get("hex", "")) or b"\x5a" * command.get("size", 0)
            metadata = [(k, bytes.fromhex(v) if k.endswith("-bin") else v) for k, v in command.get("metadata", [])]
            call = channel.unary_unary(command["method"])
            calls[key] = call.future(body, timeout=command.get("timeout", 30), metadata=metadata)
        elif command["do"] == "cancel":
            calls[key].cancel()
        elif command["do"] == "result":
            say(json.dumps(result(calls.pop(key), command.get("metadata", False))))
    channel.close()


def status_kib(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def bench(url, arguments):
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    calls, interval = int(options["--calls"]), float(options.get("--interval-ms", 0)) / 1000
    ca = read(options["--ca"]) if "--ca" in options else None
    upload = "--upload" in options
    body = b"\x5a" * int(options["--upload" if upload else "--body"])
    expected = str(len(body)).encode() if upload else body
    channel = channel_to(url, ca)
    method = channel.unary_unary("/test.Peer/" + ("Length" if upload else "Echo"))
    for _ in range(1 if upload or interval else 100):
        assert method(body, timeout=30) == expected
    taken = []
    start_rss, cpu, begin = status_kib("VmRSS"), time.process_time(), time.perf_counter()
    for n in range(calls):
        if n and interval:
            time.sleep(interval)
        start = time.perf_counter_ns()
        answer = method(body)
        taken.append(time.perf_counter_ns() - start)
        assert answer == expected
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    taken.sort()
    figures = {
        "calls": calls,
        "body": len(body),
        "median_ns": taken[calls // 2],
        "p99_ns": taken[calls * 99 // 100],
        "wall_s": wall,
        "cpu_s": cpu,
        "start_rss_kib": start_rss,
        "peak_rss_kib": status_kib("VmHWM"),
    }
    say(json.dumps(figures))
    channel.close()


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "server":
        serve(rest)
    elif mode == "client":
        client(rest[0], rest[1:])
    else:
        bench(rest[0], rest[1:])
