"""A client of the Container Runtime Interface, as the kubelet is one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

PROTO = Path(__file__).with_name("cri.proto")
SERVICE = "runtime.v1.RuntimeService"
#: What the kubelet gives a call (``--runtime-request-timeout``), in seconds.
TIME_LIMIT = 120

CriError = grpc.RpcError


class Cri:
    """The runtime that listens on ``socket``.

    :param folder: where the compiled interface may be put.
    """

    def __init__(self, socket: Path, folder: Path) -> None:
        # gRPC's own choice for a unix socket is the socket's path, which Go's HTTP/2 refuses as an authority.
        self._channel = grpc.insecure_channel(f"unix:{socket}", [("grpc.default_authority", "localhost")])
        self._methods = dict(_methods(self._channel, folder))

    def call(self, method: str, **fields: Any) -> Any:
        """Call a method; its request's fields may be plain dictionaries.

        :raises CriError: with what the runtime said as its ``details()``.
        """
        return self._methods[method](fields)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


def _methods(channel: Any, folder: Path) -> list[tuple[str, Callable[[dict[str, Any]], Any]]]:
    """A function for each method of the service. No code is generated: the descriptors say it all."""
    compiled = folder / "cri.pb"
    argv = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PROTO.parent}",
        f"--descriptor_set_out={compiled}",
    ]
    subprocess.run([*argv, PROTO.name], check=True)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)

    def function(method: Any) -> Callable[[dict[str, Any]], Any]:
        request, response = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        send = channel.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return lambda fields: send(request(**fields), timeout=TIME_LIMIT)

    return [(method.name, function(method)) for method in pool.FindServiceByName(SERVICE).methods]
