"""optuna-dashboard's pages, served by this very process, on the study's database as we open it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from socket import socket
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from mnistexp.errors import ConfigError
from mnistexp.study import database as storage

METRIC = "study:metric_names"  # where Optuna's set_metric_names, which is experimental, puts them


def check_installed() -> None:
    """Raises: ConfigError if the package isn't here."""
    try:
        import optuna_dashboard  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise ConfigError("--optuna: needs the package optuna-dashboard; pip install 'mnistexp[dashboard]'") from None


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:  # not a line for every request
        pass


def serve(address: str, study: str, listener: socket, hosts: Sequence[str], ready: Callable[[str], None]) -> None:
    """Answer until a signal says stop; then raises KeyboardInterrupt.

    Args:
        address: of the study's database.
        study: whose page to begin with, if it is there.
        listener: bound.
        hosts: HOST:PORT, by which it may be called; a page of another name (DNS rebinding) gets nothing.
        ready: called once it answers, with the path of the page to begin with.

    Raises: StoreError if there is no such database.
    """
    from optuna_dashboard import wsgi

    with storage.reading(address) as database:
        app = _only_for(hosts, wsgi(database))
        with _Server(listener.getsockname()[:2], _Handler, bind_and_activate=False) as server:
            server.socket.close()
            server.socket = listener
            server.server_name, server.server_port = listener.getsockname()[:2]
            server.setup_environ()
            server.set_app(app)
            server.server_activate()
            ready(_first_page(database, study))
            server.serve_forever()


def _first_page(database: Any, study: str) -> str:
    """The study's page, or the list of all. Its values get their name, for else the page calls them `Objective 0`."""
    found = {each.study_name: each._study_id for each in database.get_all_studies()}
    if study not in found:
        return "dashboard/"
    if METRIC not in database.get_study_system_attrs(found[study]):
        database.set_study_system_attr(found[study], METRIC, ["validation accuracy"])
    return f"dashboard/studies/{found[study]}"


def _only_for(hosts: Sequence[str], app: Callable[..., Any]) -> Callable[..., Any]:
    """An application (WSGI) that is called by its own names alone, and by its own pages: optuna-dashboard asks nobody.

    Else any page that one has open could rename or delete studies (DNS rebinding, cross-site requests).
    """
    origins = {"", *(f"http://{host}" for host in hosts)}

    def checked(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ.get("HTTP_HOST") in hosts and environ.get("HTTP_ORIGIN", "") in origins:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"called by another name, or from another page, than its own"]

    return checked
