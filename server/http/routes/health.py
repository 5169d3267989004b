"""`GET /health/live` and `/health/ready`: for load balancers and containers."""

from __future__ import annotations

from aiohttp import web

from server.http.addresses import HEALTH_PREFIX
from server.http.keys import ENGINE
from server.http.responses import json_response


async def live(request: web.Request) -> web.Response:
    """Answer 200 as long as the event loop is responsive."""
    return json_response({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """Answer 200 if exports work, and 503 while the database cannot be reached."""
    await request.app[ENGINE].database.ping()
    return json_response({"status": "ready"})


def setup(app: web.Application) -> None:
    """Add this resource's routes."""
    app.router.add_get(HEALTH_PREFIX + "live", live)
    app.router.add_get(HEALTH_PREFIX + "ready", ready)
