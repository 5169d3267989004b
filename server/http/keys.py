"""The typed keys of the objects that the application shares with its routes."""

from __future__ import annotations

from aiohttp import web

from server.export.engine import Engine
from server.http.transfer import Downloads
from server.postgres.database import Database
from server.saved.runner import Runner
from server.settings import Settings
from server.threads import Threads

SETTINGS = web.AppKey("settings", Settings)
DATABASE = web.AppKey("database", Database)
DOWNLOADS = web.AppKey("downloads", Downloads)
RUNNER = web.AppKey("runner", Runner)
ENGINE = web.AppKey("engine", Engine)
THREADS = web.AppKey("threads", Threads)
