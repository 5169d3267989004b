"""How a worker stops: how it was asked to, and how long each step may take.

On SIGTERM, downloads drain for at most SHUTDOWN_TIMEOUT, while saved exports are given back. The other steps follow one
after the other. Gunicorn kills a worker that has not ended STOP_MARGIN seconds after SHUTDOWN_TIMEOUT. The comment of
each limit names the modules that apply it; a test checks that.
"""

from __future__ import annotations

from dataclasses import dataclass

# Seconds after SHUTDOWN_TIMEOUT until gunicorn kills a worker. docker-compose.yml waits longer than this.
# Used by process/serve.py.
STOP_MARGIN = 10
# Seconds that cancelled downloads have to close their sessions. Used by http/transfer.py.
CANCEL_SECONDS = 3.0
# Seconds that saved exports have to be given back to the queue. The next start recovers those that take longer.
# Used by app.py and, if the application could not start, by saved/runner.py.
GIVE_BACK_SECONDS = 3.0
# Seconds that other requests have to end. aiohttp waits for them twice: first to end, then after it cancels them.
# Used by app.py.
HTTP_SECONDS = 1.0
# Seconds that database sessions and cancellations of statements have to end. Used by postgres/database.py.
DATABASE_SECONDS = 3.0
# Seconds that threads have to end; idle ones take milliseconds. Used by process/serve.py.
THREAD_SECONDS = 1.0


@dataclass(slots=True)
class Shutdown:
    """The kind of shutdown. immediate: running downloads are cut at once (Ctrl-C), not drained (SIGTERM)."""

    immediate: bool = False
