"""Somebody who logs in to a hub under test, without a browser."""

from __future__ import annotations

from typing import Any

import requests


class Session:
    """A browser: cookies, and what the hub wants of a page's own requests."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self.user = url, user
        self._session = requests.Session()
        self._session.headers["Sec-Fetch-Mode"] = "navigate"
        self.get("/hub/login")
        answer = self.post("/hub/login", {"username": user, "password": password})
        assert answer.ok and "/hub/login" not in answer.url, answer.url

    @property
    def xsrf(self) -> str:
        return str(self._session.cookies.get("_xsrf", path="/hub/"))

    def get(self, path: str, **headers: str) -> requests.Response:
        return self._session.get(f"{self.url}{path}", headers=headers, timeout=60)

    def post(self, path: str, form: dict[str, Any]) -> requests.Response:
        return self._session.post(
            f"{self.url}{path}", params={"_xsrf": self.xsrf}, data=form, timeout=60
        )

    def api(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return self._session.request(
            method,
            f"{self.url}/hub/api/{path}",
            headers={"X-XSRFToken": self.xsrf, "Sec-Fetch-Mode": "cors"},
            timeout=60,
            **kwargs,
        )
