"""A node of a later minor version, for the tests of our own master: grpcio with code generated from a newer proto/.

newer_node.py TARGET
    Reads one JSON call a line, {"path", "token", "body"} with a message of today in hex; sends the same with all that a
    later version may have beside it (master_schema.py), and prints {"body"} or {"code", "message"} a line.
"""

import json
import sys

import grpc

from master_schema import Schema


def main(target):
    schema = Schema(newer=True)
    stubs = {}
    channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)])
    for module in (schema.node, schema.task):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = getattr(module, method.input_type.name)
                answer = getattr(module, method.output_type.name)
                path = f"/{service.full_name}/{method.name}"
                call = channel.unary_unary(path, request.SerializeToString, answer.FromString)
                stubs[path] = (request, call)
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            if ask["path"] in stubs:
                request, call = stubs[ask["path"]]
                message = schema.enrich(request.FromString(bytes.fromhex(ask["body"])))
            else:
                message, call = b"", channel.unary_unary(ask["path"])
            answer = call(message, timeout=30, metadata=[("authorization", "Bearer " + ask["token"])])
            body = answer if isinstance(answer, bytes) else answer.SerializeToString()
            said = {"body": body.hex()}
        except grpc.RpcError as error:
            said = {"code": error.code().value[0], "message": error.details()}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
