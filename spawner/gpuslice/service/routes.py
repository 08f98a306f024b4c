"""The one table of routes: handlers, the OpenAPI document and the tests are made from it."""

from __future__ import annotations

from typing import Any

from gpuslice import wire
from gpuslice.service import (
    admincalls,
    calls,
    models,
    moneycalls,
    pagecalls,
    peoplecalls,
    policycalls,
    queuecalls,
    quotapagecalls,
    reservationcalls,
    strangercalls,
)
from gpuslice.service.auth import Access
from gpuslice.service.calls import Text
from gpuslice.service.pages import Page, Redirect
from gpuslice.service.route import AnyRoute, Route


def _table() -> tuple[Any, ...]:
    # `rows` has no annotation: like this the type checker compares, row by row, the models in the
    # table with those in the function's signature.
    no, a = models.Nothing, Access
    lease, page = wire.LeaseView, models.LeasePage
    get, post, put = "GET", "POST", "PUT"
    rows = (
        # The spawner (and the command line): a fixed token, no hub.
        Route(post, "api/broker/leases", a.BROKER, calls.grant,
              wire.LeaseRequest, no, wire.LeaseGrant,
              "Grant a slice to a named server; the same attempt gets the same lease", 201),
        Route(get, "api/broker/leases/{lease_id}", a.BROKER, calls.broker_lease,
              no, no, lease, "One lease"),
        Route(get, "api/broker/current", a.BROKER, calls.current,
              no, models.CurrentQuery, lease, "The live lease of a named server"),
        Route(post, "api/broker/leases/{lease_id}/stop", a.BROKER, calls.broker_stop,
              wire.StopLease, no, lease, "Commit a stop with its reason"),
        Route(post, "api/broker/leases/{lease_id}/settle", a.BROKER, calls.settle,
              no, models.SettleQuery, lease, "Look at this lease now; wait a while for its end"),
        Route(get, "api/broker/offers", a.BROKER, calls.broker_offers,
              no, models.OffersQuery, list[wire.Offer], "Slice types as a user may take them"),
        Route(post, "api/broker/choices", a.BROKER, calls.broker_choices,
              wire.ChoicesRequest, no, wire.Choices,
              "What a user may choose from, and how many slices are left to the user",
              changes=False),
        Route(post, "api/broker/drain", a.BROKER, calls.drain,
              models.DrainRequest, no, models.Drained,
              "Stop every lease and refuse new ones; how many still live"),
        # The node's supervisors: a fixed token, no hub.
        Route(post, "api/node/leases/{lease_id}/started", a.NODE, calls.started,
              wire.ServerStarted, no, models.Nothing,
              "Move a lease to running; 409 means that the server must not start"),
        # People and notebooks: login or token of the hub.
        Route(get, "api/offers", a.USER, calls.offers,
              no, no, list[wire.Offer], "Slice types, prices and how many are free"),
        Route(get, "api/leases", a.OWN_ALL, calls.leases,
              no, models.LeasesQuery, page, "One's own leases"),
        Route(get, "api/leases/{lease_id}", a.READ, calls.lease,
              no, no, lease, "One lease of one's own; with read-all, anybody's"),
        Route(get, "api/leases/{lease_id}/bill", a.READ, calls.bill,
              no, no, wire.Bill, "Its closed segments, each with the entry that paid it"),
        Route(post, "api/leases/{lease_id}/stop", a.STOP, calls.stop,
              models.StopRequest, no, lease,
              "Stop one's own lease; an administrator anybody's, with a reason"),
        Route(get, "api/me", a.OWN, calls.me,
              no, no, wire.Me, "Who the service takes the caller for, with live leases"),
        Route(get, "api/me/notices", a.OWN, calls.notices,
              no, models.NoticesQuery, list[wire.Notice], "Notices to the caller"),
        Route(post, "api/me/keep", a.OWN, calls.keep,
              models.KeepRequest, no, lease, "Protect one's own lease from the idle stop"),
        # Administrators and scrapers.
        Route(get, "api/devices", a.READ_ALL, calls.devices,
              no, no, list[wire.DeviceView], "All devices and who holds them"),
        Route(post, "api/admin/devices/{node_id}/{device}/clear", a.ADMIN, admincalls.clear_device,
              wire.ClearDevice, no, wire.DeviceView,
              "Grant a quarantined device again; 409 while it is held or not clean"),
        Route(get, "api/admin/leases", a.READ_ALL, calls.all_leases,
              no, models.AllLeasesQuery, page, "Everybody's leases, or one user's"),
        Route(get, "api/admin/limits", a.READ_ALL, admincalls.limits,
              no, models.LimitsQuery, models.LimitPage, "Limits on leases that hold now"),
        Route(put, "api/admin/limits", a.ADMIN, admincalls.set_limit,
              wire.SetLimit, no, wire.LimitView,
              "Change a limit, or set a new one; 409 if it is not the version that was read"),
        Route(get, "api/admin/audit", a.READ_ALL, admincalls.audit,
              no, models.AuditQuery, models.AuditPage, "Who changed what, when and why"),
        Route(get, "metrics", a.METRICS, calls.metrics,
              no, no, Text, "Metrics for Prometheus"),
        # Anybody.
        Route(get, "api/health", a.PUBLIC, calls.health,
              no, no, models.Health, "Whether the service works; 503 without a database"),
        Route(get, "api/openapi.json", a.PUBLIC, calls.openapi,
              no, no, dict[str, Any], "This document"),
        # Pages of users.
        Route(get, "", a.OWN_ALL, pagecalls.home,
              no, models.HomeQuery, Page, "One's own leases and what is on offer"),
        Route(get, "leases/{lease_id}", a.READ, pagecalls.lease_page,
              no, no, Page, "The bill of one lease"),
        Route(post, "leases/{lease_id}/stop", a.STOP, pagecalls.stop_from_page,
              no, no, Redirect, "The page's stop button"),
        Route(get, "entries", a.OWN_ALL, pagecalls.entries_of_mine,
              no, models.EntriesPageQuery, Page, "One's own rows of the ledger"),
        Route(post, "queue/{request_id}/leave", a.WAIT, pagecalls.leave_from_page,
              no, no, Redirect, "The page's button to leave the queue"),
        Route(post, "queue/{request_id}/change", a.WAIT, pagecalls.change_from_page,
              models.RequestForm, no, Redirect, "The page's forms to change a request"),
        # Pages of administrators.
        Route(get, "admin", a.READ_ALL, admincalls.admin_page,
              no, models.AdminQuery, Page, "Live leases and devices"),
        Route(get, "admin/limits", a.READ_ALL, admincalls.admin_limits_page,
              no, models.LimitsQuery, Page, "Limits"),
        Route(post, "admin/limits", a.ADMIN, admincalls.admin_set_limit,
              models.LimitForm, no, Redirect, "Change a limit"),
        Route(get, "admin/audit", a.READ_ALL, admincalls.admin_audit_page,
              no, models.AuditQuery, Page, "Who changed what, when and why"),
        Route(post, "admin/leases/{lease_id}/stop", a.ADMIN, admincalls.admin_stop,
              models.StopForm, no, Redirect, "Stop anybody's lease, with a reason"),
        Route(post, "admin/devices/{node_id}/{device}/clear", a.ADMIN,
              admincalls.admin_clear_device, models.ClearForm, no, Redirect,
              "Grant a quarantined device again, with a reason"),
    )  # fmt: skip
    return rows  # noqa: RET504


ROUTES: tuple[AnyRoute, ...] = (
    *_table(),
    *policycalls.ROUTES,
    *queuecalls.ROUTES,
    *moneycalls.ROUTES,
    *peoplecalls.ROUTES,
    *reservationcalls.ROUTES,
    *quotapagecalls.ROUTES,
    *strangercalls.ROUTES,
)
