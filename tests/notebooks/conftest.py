"""Puts the helpers of these tests, and nothing else, on the path."""

import sys
from pathlib import Path

# With importlib mode pytest does not put the helpers next to this file on the path.
sys.path.insert(0, str(Path(__file__).parent))
