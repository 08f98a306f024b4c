"""The service: REST and pages over the broker, as an externally managed JupyterHub service.

Invariants
    - Who somebody is, and which server a notebook's token speaks for, comes from the token alone.
    - Every decision about access is a method in :mod:`gpuslice.service.auth`; every route is a row
      in :mod:`gpuslice.service.routes`, and handlers, OpenAPI and tests read that row.
    - The routes of spawner and node never need the hub; the routes of people do, and say so (503).
    - Every error of the API is a ``wire.Refusal``; a client never sees a traceback.

Not owned here: leases, money and the database (:mod:`gpuslice.broker`), GPUs and the engine (the
node), login and scopes (the hub).
"""
