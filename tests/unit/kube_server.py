"""A simulated API server in this process, and clients of it over real HTTP."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from terway_core.config import KubeConfig
from terway_core.kube import NODES, PODS, KubeClient
from terway_core.lab.api import serving
from terway_core.lab.kubernetes import Call, Objects, Refusal, Served, build_app

_numbers = itertools.count()


class ApiServer:
    """``objects`` is what it has; :meth:`away` and :meth:`refuse` are its bad days."""

    def __init__(self, folder: Path) -> None:
        self.objects = Objects()
        self.served = Served()
        #: Of aiohttp.
        self.middlewares: list[Any] = []
        self.folder = folder
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._running: Any = None
        #: Calls a function where the server shall be: in a network namespace, say.
        self.where: Callable[[Callable[[], None]], None] = lambda function: function()

    @contextmanager
    def running(self) -> Iterator[Self]:
        self.come()
        try:
            yield self
        finally:
            self.go()

    def come(self) -> None:
        self.where(self._start)

    def _start(self) -> None:
        app = build_app(self.objects, self.served)
        app.middlewares.extend(self.middlewares)
        self._running = serving(app, port=self.port)
        self._running.__enter__()

    def go(self) -> None:
        if self._running:
            self._running.__exit__(None, None, None)
            self._running = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens at its port."""
        self.go()
        try:
            yield
        finally:
            self.come()

    @property
    def config(self) -> KubeConfig:
        return KubeConfig(enabled=True, kubeconfig=self.kubeconfig())

    def kubeconfig(self, **user: str) -> Path:
        path = self.folder / f"kubeconfig-{next(_numbers)}"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "lab", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "me", "user": user}],
                    "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
                    "current-context": "lab",
                }
            )
        )
        return path

    def client(self) -> KubeClient:
        return KubeClient(self.config)

    def refuse(self, code: int, reason: str, verb: str = "", plural: str = "") -> None:
        """Refuse calls; ``code`` 0 ends that."""

        def refuse(call: Call) -> None:
            if code and verb in ("", call.verb) and plural in ("", call.resource.plural):
                raise Refusal(code, reason, "for a test")

        self.served.refuse = refuse

    def calls(self, verb: str, plural: str) -> int:
        return sum(1 for call in [*self.served.calls] if (call.verb, call.resource.plural) == (verb, plural))

    # -- objects ------------------------------------------------------------------------------------------

    def add_node(self, name: str = "node-1", **spec: Any) -> dict[str, Any]:
        return self.objects.create(NODES, {"metadata": {"name": name}, "spec": spec})

    def add_pod(self, name: str = "web-0", node: str = "node-1", **metadata: Any) -> dict[str, Any]:
        containers = [{"name": "main", "image": "busybox"}]
        spec = {"nodeName": node, "containers": containers} | metadata.pop("spec", {})
        return self.objects.create(PODS, {"metadata": {"name": name, **metadata}, "spec": spec}, "default")


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first true answer; only a test that fails waits long."""
    deadline = time.monotonic() + 20
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
    return answer


__all__ = ["ApiServer", "wait_for"]
