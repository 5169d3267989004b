r"""The other fast way, for comparison: asyncpg's `copy_from_query` behind aiohttp, the server's own CSV passed on.

asyncpg lies outside Sluice's stack; it is what a Python programmer who knows of COPY over the protocol would build.
Used as its documentation shows it, under gunicorn's worker on uvloop as Sluice is.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import asyncpg
from aiohttp import web

POOL = web.AppKey("pool", asyncpg.Pool)


async def export(request: web.Request) -> web.StreamResponse:
    """The relation, whole."""
    relation = request.match_info["relation"]  # a plain name: the route takes no other
    response = web.StreamResponse(headers={"Content-Type": "text/csv; charset=utf-8"})
    async with request.app[POOL].acquire() as connection:
        await response.prepare(request)
        await connection.copy_from_query(f"SELECT * FROM {relation}", output=response.write, format="csv", header=True)
    await response.write_eof()
    return response


async def open_pool(app: web.Application) -> AsyncIterator[None]:
    """Connections after the fork, closed at the end."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1) as app[POOL]:
        yield


async def make_app() -> web.Application:
    """What gunicorn's aiohttp worker awaits."""
    app = web.Application()
    app.cleanup_ctx.append(open_pool)
    app.router.add_get("/export/{relation:[a-z_]+}.csv", export)
    return app
