"""The contract's messages for Python, generated from proto/ into a folder that goes with the process.

With `newer`, they are those of a later minor version: each message has more fields, each enum one more value, each choice
one more alternative. `enrich` fills them in, so that the other end gets things which it can't know, at each depth.
"""

import importlib
import pathlib
import re
import struct
import sys
import tempfile

from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FILES = ["common", "node", "task"]
# A value that no enum of the contract has; the newer ones have it.
NEWER_VALUE = 77
NEWER_PART = """
message NewerPart {
  string word = 1;
  uint64 number = 2;
  repeated NewerPart parts = 3;
}
"""


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def unknown_fields():
    """Fields that neither version has, one of each wire type, among them the highest number that there is."""
    kinds = [(0, varint(2**64 - 1)), (1, struct.pack("<d", 0.5)), (2, varint(5) + b"\xff\x00abc")]
    kinds += [(3, varint(9 << 3) + varint(1) + varint(5003 << 3 | 4)), (5, struct.pack("<f", 0.5))]
    fields = [varint(5000 + kind << 3 | kind) + value for kind, value in kinds]
    return b"".join([*fields, varint(536_870_911 << 3) + varint(1)])


def make_newer(text):
    """The text of a proto file, as a later minor version may have it."""
    text, enums = re.subn(r"^(  (\w+)_UNSPECIFIED = 0;)$", rf"\1\n  \2_NEWER = {NEWER_VALUE};", text, flags=re.M)
    text, choices = re.subn(r"^( +)oneof (\w+) \{$", r"\1oneof \2 {\n\1  NewerPart newer_choice = 1004;", text, flags=re.M)
    fields = "  string newer_text = 1001;\n  sint64 newer_number = 1002;\n  repeated NewerPart newer_parts = 1003;\n"
    text, messages = re.subn(r"^(message \w+ \{)(\}?)$", rf"\1\n{fields}\2", text, flags=re.M)
    assert messages == len(re.findall(r"^message ", text, flags=re.M))
    assert enums == len(re.findall(r"^enum ", text, flags=re.M))
    assert choices == len(re.findall(r"\boneof \w+ \{", text))
    return text


class Schema:
    """The generated modules: `node`, `task` and `common`, and the services `node_grpc`, `task_grpc`."""

    def __init__(self, newer):
        self.newer = newer
        self._folder = tempfile.TemporaryDirectory(prefix="hivemind-schema-")
        out = pathlib.Path(self._folder.name)
        names = [f"hivemind/v1/{name}.proto" for name in FILES]
        source = PROTO
        if newer:
            source = out / "proto"
            for name in names:
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                text = make_newer((PROTO / name).read_text())
                (source / name).write_text(text + NEWER_PART if "common" in name else text)
        (out / "python").mkdir()
        code = protoc.main(["protoc", f"-I{source}", f"--python_out={out}/python", f"--grpc_python_out={out}/python", *names])
        assert code == 0, "protoc failed"
        sys.path.insert(0, f"{out}/python")
        for name in FILES:
            setattr(self, name, importlib.import_module(f"hivemind.v1.{name}_pb2"))
        self.node_grpc = importlib.import_module("hivemind.v1.node_pb2_grpc")
        self.task_grpc = importlib.import_module("hivemind.v1.task_pb2_grpc")

    def enrich(self, message):
        """Adds what an older end can't know, here and in each message inside; does nothing without `newer`."""
        if not self.newer:
            return message
        for field, value in message.ListFields():
            if field.message_type is None or field.message_type.GetOptions().map_entry:
                continue
            for one in value if field.is_repeated else [value]:
                self.enrich(one)
        fields = message.DESCRIPTOR.fields_by_name
        if "newer_text" in fields:
            message.newer_text = "from a later version"
            message.newer_number = -(2**62)
            message.newer_parts.add(word="outer", number=1).parts.add(word="inner")
        for choice in message.DESCRIPTOR.oneofs:
            # A choice that nobody made is the alternative which the older end does not have.
            is_open = any(field.name == "newer_choice" for field in choice.fields)
            if is_open and message.WhichOneof(choice.name) is None:
                message.newer_choice.word = "another"
        for field in message.DESCRIPTOR.fields:
            if field.enum_type is not None and field.is_repeated:
                getattr(message, field.name).append(NEWER_VALUE)
        message.MergeFromString(unknown_fields())
        return message
