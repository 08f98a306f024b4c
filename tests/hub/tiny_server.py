"""Stands in for a single-user server: answers the hub, and ends when asked or told to."""

import os
import queue
import signal
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    if (Path.home() / "refuse-to-start").exists():
        sys.stderr.write("the <b>disk</b> of this user is full\n")
        sys.exit(3)
    if (Path.home() / "never-answer").exists():
        sys.stderr.write(f"{(Path.home() / 'never-answer').read_text()}\n")
        sys.stderr.flush()
        signal.pause()
    url = urllib.parse.urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    signals = queue.SimpleQueue()
    signal.signal(signal.SIGUSR1, lambda *_: signals.put(None))
    # Runs on without listening between one SIGUSR1 and the next.
    while True:
        server = ThreadingHTTPServer((url.hostname, url.port), Handler)
        threading.Thread(target=server.serve_forever).start()
        signals.get()
        server.shutdown()
        server.server_close()
        signals.get()
