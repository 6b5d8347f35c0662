"""What stands before MLflow's web application."""

from __future__ import annotations

import asyncio
from typing import Any

from mnistexp.dashboards.front import Front, Message, Receive, Send

PAGE = "#/experiments/1/runs"


async def pages(scope: Message, receive: Receive, send: Send) -> None:
    """An application that answers in two parts, and refuses what is called evil."""
    headers = dict(scope["headers"])
    status = 403 if headers.get(b"host") == b"evil" else 304 if b"if-none-match" in headers else 200
    parts = (b"<html><head><title>x</title>", b"</head></html>") if status == 200 else (b"", b"no")
    started = [(b"content-length", b"%d" % sum(map(len, parts))), (b"etag", b"1"), (b"x-frame-options", b"DENY")]
    await send({"type": "http.response.start", "status": status, "headers": started})
    await send({"type": "http.response.body", "body": parts[0], "more_body": True})
    await send({"type": "http.response.body", "body": parts[1]})


def ask(path: str, page: str = PAGE, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """Ask it for a path. Returns: status, headers, body."""
    sent: list[Any] = []
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    asyncio.run(Front(pages, page)({"type": "http", "path": path, "headers": named}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(part["body"] for part in sent[1:])


def test_the_first_page_gets_our_head_and_keeps_its_own_headers() -> None:
    """The bare address leads on; MLflow's protection against frames stays."""
    status, headers, body = ask("/")

    assert status == 200
    assert body.startswith(b"<html><head><style>")
    assert body.endswith(b"<title>x</title></head></html>")
    assert f'location.replace("{PAGE}")'.encode() in body
    assert headers == {b"x-frame-options": b"DENY", b"content-length": str(len(body)).encode()}


def test_a_page_that_was_kept_is_asked_for_anew() -> None:
    """A browser that has MLflow's page from before gets ours, not a 304."""
    assert ask("/", if_none_match="1")[0] == 200


def test_a_refusal_stays_one() -> None:
    """A page of another name gets what MLflow says to it, without ours."""
    status, _, body = ask("/", host="evil")

    assert (status, body) == (403, b"no")


def test_other_answers_pass_untouched() -> None:
    """Data and scripts come as MLflow sends them."""
    assert ask("/ajax-api/2.0/mlflow/runs/search")[2] == b"<html><head><title>x</title></head></html>"


def test_the_assistant_is_off() -> None:
    """Nothing of it is reached, by whatever prefix."""
    for path in ("/ajax-api/3.0/mlflow/assistant/message", "/api/3.0/mlflow/assistant"):
        assert ask(path)[0] == 404


def test_the_address_can_not_break_out_of_the_script() -> None:
    """Whatever is in it is text."""
    _, _, body = ask("/", "</script><script>alert(1)")

    assert b"</script><script>alert" not in body
