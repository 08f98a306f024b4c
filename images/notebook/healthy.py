#!/usr/bin/python3 -I
"""Is the notebook server of this container well? Exits 0 if its /api answers 200 within 3 s.

Where it listens is in the file that a running server leaves in Jupyter's runtime folder.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

TIMEOUT_S = 3


def main() -> int:
    """1 with a sentence unless the server answers."""
    folder = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    told = max(folder.glob("jpserver-*.json"), key=lambda file: file.stat().st_mtime, default=None)
    if told is None:
        print(f"no server has written {folder}/jpserver-*.json")
        return 1
    url = json.loads(told.read_text())["url"] + "api"
    # Not by a proxy that the environment names for the user's work.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            print(f"{url} answers {answer.status}")
    except OSError as error:
        print(f"{url} does not answer: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
