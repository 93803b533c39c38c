"""Serve an app from a thread with an event loop of its own: for tests and scripts that call it themselves."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

#: Turns of the event loop from a connection's acceptance until it is known to the server.
_ACCEPTING = 4


@contextmanager
def serving(app: web.Application, port: int = 0) -> Iterator[str]:
    """``host:port`` on the loopback, until the block ends; port 0 stands for any that is free."""
    loop = asyncio.new_event_loop()
    # No access log: the query of an RPC-signed call holds the STS token.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)

    listening = socket.create_server(("127.0.0.1", port))

    async def start() -> str:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        host, bound = listening.getsockname()[:2]
        return f"{host}:{bound}"

    async def end() -> None:
        # asyncio leaks a connection that it accepts in the moment in which it closes the listening socket.
        loop.remove_reader(listening)
        for _ in range(_ACCEPTING):
            await asyncio.sleep(0)
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_forever, name="serving", daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
