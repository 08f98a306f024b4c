"""How the platform is, read from the broker's health report, in words for a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: A comparison with the node older than this means that it hangs.
_OLD_S = 60


@dataclass(frozen=True)
class Platform:
    """The broker's health report with types."""

    database_ok: bool
    node_ok: bool
    simulated: bool
    gpu_problem: str | None
    draining: str | None
    reconcile_age_s: float | None
    closed_nodes: Mapping[str, str]
    not_offered: Mapping[str, str]

    @classmethod
    def of(cls, health: Mapping[str, Any]) -> Platform:
        return cls(
            database_ok=bool(health.get("database_ok")),
            node_ok=bool(health.get("node_ok")),
            simulated=bool(health.get("simulated")),
            gpu_problem=health.get("gpu_problem"),
            draining=health.get("draining"),
            reconcile_age_s=health.get("reconcile_age_s"),
            closed_nodes=health.get("closed_nodes") or {},
            not_offered=health.get("not_offered") or {},
        )

    @property
    def troubles(self) -> list[str]:
        """What a user has to know now; nothing when all is well."""
        found = []
        if self.draining is not None:
            found.append(f"No new servers are started: {self.draining}.")
        if not self.node_ok:
            why = "; ".join(sorted(set(self.closed_nodes.values())))
            found.append(
                f"The GPU host cannot be used now{f' ({why})' if why else ''}. Running servers go "
                "on and their bills with them; numbers below may be old, and nothing new starts."
            )
        return found

    @property
    def node(self) -> str:
        return "reachable" if self.node_ok else "not usable"

    @property
    def compared(self) -> str:
        if self.reconcile_age_s is None:
            return "not yet since the service started"
        return f"{self.reconcile_age_s:.0f} s ago"

    @property
    def late(self) -> bool:
        return self.reconcile_age_s is None or self.reconcile_age_s > _OLD_S

    @property
    def well(self) -> bool:
        return self.database_ok and self.node_ok and not self.late and self.draining is None
