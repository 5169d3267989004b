"""The objects that the application shares with its routes, each under a typed key."""

from __future__ import annotations

from aiohttp import web

from server.http.streaming import Downloads
from server.postgres.database import Database
from server.saved.runner import Runner
from server.settings import Settings

SETTINGS = web.AppKey("settings", Settings)
DATABASE = web.AppKey("database", Database)
DOWNLOADS = web.AppKey("downloads", Downloads)
RUNNER = web.AppKey("exports", Runner)
NATIVE_ENCODER = web.AppKey("native_encoder", bool)
