"""The typed keys of the objects that the application shares with its routes."""

from __future__ import annotations

from aiohttp import web

from server.export.engine import Engine
from server.http.connections import Connections
from server.http.transfer import Downloads
from server.saved.runner import Runner
from server.saved.watch import Watch
from server.settings import Settings

SETTINGS = web.AppKey("settings", Settings)
DOWNLOADS = web.AppKey("downloads", Downloads)
CONNECTIONS = web.AppKey("connections", Connections)
RUNNER = web.AppKey("runner", Runner)
ENGINE = web.AppKey("engine", Engine)
WATCH = web.AppKey("watch", Watch)
