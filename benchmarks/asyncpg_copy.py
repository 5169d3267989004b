r"""Another fast way, for comparison: asyncpg's `copy_from_query` behind aiohttp passes on the CSV of PostgreSQL.

It is what a Python programmer who knows COPY would build. asyncpg, which is no part of Sluice's stack, is used as its
documentation shows it, under gunicorn's worker on uvloop like Sluice.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import asyncpg
from aiohttp import web

POOL = web.AppKey("pool", asyncpg.Pool)


async def export(request: web.Request) -> web.StreamResponse:
    """Stream the whole relation."""
    relation = request.match_info["relation"]  # the route accepts plain names only
    response = web.StreamResponse(headers={"Content-Type": "text/csv; charset=utf-8"})
    async with request.app[POOL].acquire() as connection:
        await response.prepare(request)
        await connection.copy_from_query(f"SELECT * FROM {relation}", output=response.write, format="csv", header=True)
    await response.write_eof()
    return response


async def open_pool(app: web.Application) -> AsyncIterator[None]:
    """Open a pool after the fork and close it at the end."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1) as app[POOL]:
        yield


async def make_app() -> web.Application:
    """Return the application. Called by gunicorn's aiohttp worker."""
    app = web.Application()
    app.cleanup_ctx.append(open_pool)
    app.router.add_get("/export/{relation:[a-z_]+}.csv", export)
    return app
