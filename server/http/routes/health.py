"""`GET /health/live` and `/health/ready`: for load balancers and containers."""

from __future__ import annotations

from aiohttp import web

from server.http.keys import DATABASE


async def live(request: web.Request) -> web.Response:
    """200 as long as the event loop turns."""
    return web.json_response({"status": "live"}, headers={"Cache-Control": "no-store"})


async def ready(request: web.Request) -> web.Response:
    """200 as soon as exports work; 503 while the database is away."""
    await request.app[DATABASE].ping()
    return web.json_response({"status": "ready"}, headers={"Cache-Control": "no-store"})


def setup(app: web.Application) -> None:
    """Add this resource's routes."""
    app.router.add_get("/health/live", live)
    app.router.add_get("/health/ready", ready)
