"""protoc plugin that writes `_pb2_grpc.py`.

grpcio-tools bundles that generator inside its own protoc and ships no plugin, and buf does not know it as a builtin.
So this reads buf's CodeGeneratorRequest, hands its descriptors to grpc_tools' protoc, and answers with what that wrote.
"""

import pathlib
import sys
import tempfile

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from grpc_tools import protoc


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Returns the `_pb2_grpc.py` files of those requested files that define services."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    files = [f.name for f in request.proto_file if f.name in set(request.file_to_generate) and f.service]
    if not files:
        return response
    with tempfile.TemporaryDirectory() as directory:
        descriptors = pathlib.Path(directory, "descriptors.binpb")
        descriptors.write_bytes(descriptor_pb2.FileDescriptorSet(file=request.proto_file).SerializeToString())
        out = pathlib.Path(directory, "out")
        out.mkdir()
        code = protoc.main(["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *files])
        if code:
            response.error = f"grpc_tools.protoc ended with exit code {code}"
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=str(path.relative_to(out)), content=path.read_text())
    return response


if __name__ == "__main__":
    sys.stdout.buffer.write(
        generate(plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())).SerializeToString()
    )
