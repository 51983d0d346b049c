"""A real service of a tiny model, for tests that ask over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import tiny
import uvicorn

from kava.serve.app import create_app
from kava.serve.connection import configure_server
from kava.serve.limits import Limits

QUESTIONS = [tiny.words(3 + i % 9, seed=i) for i in range(24)]
LIMITS = Limits(question_tokens=64, new_tokens=12, timeout=30.0, delay=0.01, batch_size=8)


@contextmanager
def serving(reasoner, limits=LIMITS, api_key=None, hosts=None):
    """A real server in a thread, on a free port; gives its address and the uvicorn server."""
    app = create_app(reasoner, "tiny", limits, api_key, hosts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(configure_server(app, limits, port=port))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
