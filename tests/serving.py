"""A web server of this machine, for as long as a test needs one."""

import threading
import time
from contextlib import contextmanager
from http.server import ThreadingHTTPServer


@contextmanager
def serving(handler):
    """A server with its `url`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        # By default it notices only twice a second that it is to stop.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def explaining(explainer, results=()):
    """The address of the page of `vitscope serve`."""
    from vitscope.serving.app import listen, make_server

    with listen("127.0.0.1", 0) as socket:
        server = make_server(explainer, list(results), "127.0.0.1")
        thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.001)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
