"""Serve an app from a thread with an event loop of its own: for tests and scripts that call it themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web


@contextmanager
def serving(app: web.Application, port: int = 0) -> Iterator[str]:
    """``host:port`` on the loopback, until the block ends; port 0 stands for any that is free."""
    loop = asyncio.new_event_loop()
    # No access log: the query of an RPC-signed call holds the STS token.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        host, bound = runner.addresses[0][:2]
        return f"{host}:{bound}"

    thread = threading.Thread(target=loop.run_forever, name="serving", daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
