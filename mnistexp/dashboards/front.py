"""What stands before MLflow's web application: its first page leads to our view, and its assistant is off.

The assistant hands what the runs hold to a language model, and runs shell commands as you, for everybody who
reaches the port. On a first visit its panel covers a quarter of the page.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

ASSISTANT = "/mlflow/assistant"

HEAD = """<style>[data-assistant-ui] {{ display: none !important }}</style>
<script>
  try {{ // what the person has chosen stays
    const settings = {{
      "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
      "mlflow.workflowType_v1": '"machine_learning"', // else the menu is about language models
    }};
    for (const [key, value] of Object.entries(settings))
      if (localStorage.getItem(key) === null) localStorage.setItem(key, value);
  }} catch {{}} // a browser that keeps nothing
  if (!location.hash && {page}) location.replace({page});
</script>
"""


class Front:
    """MLflow's application (ASGI) with another head on its first page."""

    def __init__(self, app: App, page: str) -> None:
        """Args: page: where the bare address leads, from the `#` on."""
        self._app = app
        self._head = HEAD.format(page=json.dumps(page).replace("<", "\\u003c")).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and ASSISTANT in path:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"the assistant is off"})
        elif scope["type"] == "http" and path == "/":
            await self._first_page(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _first_page(self, scope: Message, receive: Receive, send: Send) -> None:
        """MLflow's answer, refusals included, with our head in it if it is a page."""
        asked = [(key, value) for key, value in scope["headers"] if not key.startswith(b"if-")]  # no "304, as before"
        start: Message = {}
        body = b""

        async def hold(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                whole = body.replace(b"<head>", b"<head>" + self._head, 1)
                length = (b"content-length", str(len(whole)).encode())
                kept = [pair for pair in start["headers"] if pair[0].lower() not in (b"content-length", b"etag")]
                await send({**start, "headers": [*kept, length]})
                await send({"type": "http.response.body", "body": whole})

        await self._app({**scope, "headers": asked}, receive, hold)
