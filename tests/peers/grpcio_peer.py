"""The independent gRPC implementation of the tests: grpcio, with raw bytes as messages.

grpcio_peer.py server [--port N] [--tls CERT KEY [--client-ca CA]]
    Prints PORT and serves until standard input ends.
grpcio_peer.py client TARGET [--tls CA [--identity CERT KEY]]
    Reads one JSON command a line from standard input, prints one JSON answer a line.
"""

import hashlib
import json
import sys
import threading
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


METHODS = {"Echo": echo, "Size": size, "Status": status, "Hang": hang, "Remaining": remaining}


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        method = METHODS.get(details.method.removeprefix("/test.Peer/"))
        return grpc.unary_unary_rpc_method_handler(method) if method else None


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


def result(call):
    try:
        body = call.result()
    except grpc.RpcError as error:
        return {"code": error.code().value[0], "message": error.details()}
    except grpc.FutureCancelledError:
        return {"code": 1, "message": "cancelled here"}
    return {"code": 0, "len": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def connect(target, arguments):
    if not arguments:
        return grpc.insecure_channel(target, options=OPTIONS)
    ca, certificate, key = None, None, None
    while arguments:
        word = arguments.pop(0)
        if word == "--tls":
            ca = read(arguments.pop(0))
        elif word == "--identity":
            certificate, key = (read(arguments.pop(0)) for _ in range(2))
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), options=OPTIONS)


def client(target, arguments):
    channel = connect(target, arguments)
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
            say(json.dumps(result(calls.pop(key))))
    channel.close()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2:])
    else:
        client(sys.argv[2], sys.argv[3:])
