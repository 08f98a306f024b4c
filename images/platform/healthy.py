#!/opt/gpuslice/bin/python -I
"""Is this container's server well? Asks HEALTH_URL and exits 0 if the answer is 200 within 3 s.

HEALTH_URL is `http://host:port/path`, or `unix:/path/of/a.sock:/path` for a server on a socket.
"""

import http.client
import os
import socket
import sys
from urllib.parse import urlsplit

TIMEOUT_S = 3


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to the socket of this path."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def _status(url: str) -> int:
    connection: http.client.HTTPConnection
    if url.startswith("unix:"):
        address, _, path = url.removeprefix("unix:").partition(":")
        connection = _UnixConnection(address)
    else:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
        path = parts.path
    connection.request("GET", path or "/")
    return connection.getresponse().status


def main() -> int:
    """1 with a sentence unless the server says 200."""
    url = os.environ.get("HEALTH_URL", "")
    if not url:
        print("HEALTH_URL is not set: which address says that this server is well?")
        return 1
    try:
        status = _status(url)
    except (OSError, http.client.HTTPException) as error:
        print(f"{url} does not answer: {error}")
        return 1
    print(f"{url} answers {status}")
    return 0 if status == http.HTTPStatus.OK else 1


if __name__ == "__main__":
    sys.exit(main())
