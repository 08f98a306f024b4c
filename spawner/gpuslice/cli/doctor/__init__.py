"""``gpuslice doctor``: whether this machine can run the platform, and what to do where it cannot.

Each module here is one group of checks: a function that looks, which may fail and may be slow,
and functions that judge what was seen, which are pure. Nothing is changed by looking; only
``--gpu`` starts anything (containers of its own, which it removes).
"""
