"""Web servers on loopback."""

import threading
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer


@contextmanager
def served(handler, **options):
    """Address of a server whose requests a class of http.server handles, with these options; it logs nothing."""
    quiet = type("Quiet", (handler,), {"log_message": lambda self, *arguments: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, **options))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
