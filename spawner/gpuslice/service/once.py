"""Writes under an ``Idempotency-Key``: the same key again has one effect and one answer.

A page's form carries a key of its own in a hidden field, made when the page was: a double click,
or the same form sent once more from the browser's history, does nothing twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
from typing import Any

from tornado.httputil import HTTPServerRequest

from gpuslice.broker.core import CLAIM
from gpuslice.errors import Refused
from gpuslice.ledger.idempotency import AlreadyDone, Claim, Done
from gpuslice.service.auth import Caller
from gpuslice.service.calls import Call
from gpuslice.service.parse import FORM_KEY, sent_by_form
from gpuslice.service.ports import Core
from gpuslice.service.route import AnyRoute
from gpuslice.wire import Refusal

log = logging.getLogger(__name__)

_KEY = re.compile(r"[!-~]{1,128}")
_FORM_KEY = re.compile(r"[0-9a-f]{32}")
#: What the ledger keeps of a caller at most.
_OWNER_LENGTH = 255
#: How long a request waits for the answer to another one with its key that is being made.
_WAIT_S, _LOOK_S = 10.0, 0.05
#: Statuses from here on are refusals.
_REFUSED = 400


def read_key(request: HTTPServerRequest, route: AnyRoute, caller: Caller) -> Claim | None:
    """The key of a request that may be sent twice; None: it came without, or changes nothing.

    Raises:
        Refused: what was sent cannot be a key.
    """
    if route.is_page:
        return _read_form_key(request, route, caller)
    if not route.is_write:
        return None
    sent = request.headers.get_list("Idempotency-Key")
    if not sent:
        return None
    if len(sent) > 1 or not _KEY.fullmatch(sent[0]):
        raise Refused(
            "bad-key",
            "Idempotency-Key: send one, of at most 128 printable ASCII characters without spaces.",
            status=400,
        )
    said = b"\n".join((route.method.encode(), request.uri.encode() if request.uri else b"",
                       request.body))  # fmt: skip
    return Claim(_owner(caller), sent[0], hashlib.sha256(said).hexdigest())


def new_form_key() -> str:
    """A key for one form on one page."""
    return secrets.token_hex(16)


def _read_form_key(request: HTTPServerRequest, route: AnyRoute, caller: Caller) -> Claim | None:
    if route.method == "GET":
        return None
    fields = sent_by_form(request.body, request.headers.get("Content-Type", ""))
    key = fields.pop(FORM_KEY, None)
    if key is None:
        return None
    if not _FORM_KEY.fullmatch(key):
        raise Refused("bad-key", f"{FORM_KEY}: is not what a page of ours sends.", status=400)
    # Not the body as it is: the same page may send another token against forgery the next time.
    said = json.dumps([route.method, request.uri, sorted(fields.items())])
    return Claim(_owner(caller), key, hashlib.sha256(said.encode()).hexdigest())


def _owner(caller: Caller) -> str:
    """Whose key it is. With the kind: a hub user may be called ``broker``."""
    owner = f"{caller.kind}:{caller.name}"
    if len(owner) > _OWNER_LENGTH:
        owner = f"{caller.kind}:{hashlib.sha256(owner.encode()).hexdigest()}"
    return owner


async def once(core: Core, claim: Claim, route: AnyRoute, call: Call[Any, Any]) -> tuple[int, str]:
    """Do it, or find what was answered; status and JSON, for a page where to go on.

    Raises:
        Refused: it was refused (and may be sent again, unless that changed something), the key was
            used for another request, or the first answer was lost.
    """
    done = await core.done_before(claim.caller, claim.key)
    if done is not None:
        return await _again(core, claim, done, route)
    token = CLAIM.set(claim)
    try:
        answer = await route.run(call)
    except AlreadyDone:
        done = await core.done_before(claim.caller, claim.key)
        assert done is not None
        return await _again(core, claim, done, route)
    except Refused as refused:
        # With an effect (a lease that was granted and taken back) it is what happened, also the
        # next time; without one it may be tried again.
        if claim.taken:
            await _keep(core, claim, refused.status, refused.refusal.model_dump_json())
        raise
    finally:
        CLAIM.reset(token)
    text = route.dump(answer).decode()
    if claim.taken:
        await _keep(core, claim, route.status, text)
    return route.status, text


async def _keep(core: Core, claim: Claim, status: int, text: str) -> None:
    """Keep the answer for the next time, if that can be done.

    The effect is committed: what has happened is answered, and not that an answer was not kept.
    """
    try:
        await core.keep_answer(claim, status, text)
    except Refused as refused:
        log.error("event=answer-not-kept caller=%r reason=%s", claim.caller, refused.refusal.reason)


async def _again(core: Core, claim: Claim, done: Done, route: AnyRoute) -> tuple[int, str]:
    """The answer to the first request with this key, once there is one."""
    if done.fingerprint != claim.fingerprint:
        said = "This Idempotency-Key was used for another request."
        if route.is_page:
            said = "This form was sent before, with something else in it. Open the page again."
        raise Refused("key-reused", said, status=422)
    deadline = asyncio.get_running_loop().time() + _WAIT_S
    while not done.status:
        if asyncio.get_running_loop().time() >= deadline:
            raise Refused(
                "answer-lost",
                "This was done already, but its answer was lost; look at what it changed.",
                status=409,
            )
        await asyncio.sleep(_LOOK_S)
        found = await core.done_before(claim.caller, claim.key)
        assert found is not None
        done = found
    if done.status >= _REFUSED:
        raise _as_it_was(done)
    return done.status, done.answer


def _as_it_was(done: Done) -> Refused:
    said = Refusal.model_validate_json(done.answer)
    return Refused(
        said.reason, said.message, status=done.status, limit=said.limit,
        retry_after_s=said.retry_after_s, alternatives=said.alternatives,
    )  # fmt: skip
