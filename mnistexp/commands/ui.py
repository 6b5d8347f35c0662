"""The command `ui`: MLflow's dashboard of the runs, or Optuna's of the studies, on this machine."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import psutil

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.storage.urls import redact
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.store import resolved_uri

PORTS = 50  # how many ports are tried, from the given one on


def ui(request: ParsedOverrides, args: CommandArgs) -> int:
    """Serve a dashboard until Ctrl-C or SIGTERM. Returns: 0, because that is the usual end."""
    config = configs.compose(request)
    with suppress(KeyboardInterrupt):
        (_optuna if args.flags.get("--optuna") else _mlflow)(config, args)
    return 0


def _mlflow(config: Config, args: CommandArgs) -> None:
    import uvicorn

    from mnistexp.tracking import ui_server

    if config.tracking.name == "none":
        raise ConfigError("tracking=none: no run is logged, so there is none to show; leave it out, or give --optuna")
    uri = resolved_uri(config.tracking)
    console.note("starting MLflow's dashboard; it takes a few seconds")
    page = ui_server.first_page(uri, config.tracking.experiment or run_context.study_name(config))
    if uri.startswith("http"):
        _present(uri.rstrip("/"), page, "a server that runs already: nothing was started here", args)
        return
    with _listen(args) as listener:
        app = ui_server.web_app(uri, _allowed_hosts(listener, args))
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **quiet))
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, server.handle_exit)  # uvicorn handles SIGINT and SIGTERM itself
        about = f"MLflow on {redact(uri).removeprefix('sqlite:///')}; Ctrl-C ends it"
        _present(_url(listener), page, about, args)
        server.run([listener])


# ------------------------------------------------------------------------------------------ Optuna's dashboard


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print no line per request."""


def _optuna(config: Config, args: CommandArgs) -> None:
    try:
        from optuna_dashboard import wsgi  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError("--optuna: needs the package optuna-dashboard; pip install 'mnistexp[dashboard]'") from None
    from mnistexp.study import database

    console.note("starting Optuna's dashboard; it takes a few seconds")
    with database.reading(config.study.storage) as storage, _listen(args) as listener:
        server = _Server(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        server.server_name, server.server_port = listener.getsockname()[:2]
        server.setup_environ()
        server.set_app(_protected(wsgi(storage), _allowed_hosts(listener, args)))
        ids = {study.study_name: study._study_id for study in storage.get_all_studies()}
        name = run_context.study_name(config)
        page = f"dashboard/studies/{ids[name]}" if name in ids else "dashboard/"
        if name in ids:  # as set_metric_names, which is experimental, does; else the page has `Objective 0`
            storage.set_study_system_attr(ids[name], "study:metric_names", ["validation accuracy"])
        about = f"Optuna on {redact(config.study.storage).removeprefix('sqlite:///')}; Ctrl-C ends it"
        _present(_url(listener), page, about, args)
        server.serve_forever()


def _protected(app: Callable[..., Any], hosts: Sequence[str]) -> Callable[..., Any]:
    """The WSGI application with a check of the Host and Origin headers, which optuna-dashboard does not have.

    Without it any web page that is open in the browser could delete studies (DNS rebinding, cross-site requests).
    """
    origins = {"", *(f"http://{host}" for host in hosts)}

    def checked(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ.get("HTTP_HOST") in hosts and environ.get("HTTP_ORIGIN", "") in origins:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"the request's Host or Origin header is not this server's"]

    return checked


# ------------------------------------------------------------------------------------- the port and the browser


def _listen(args: CommandArgs) -> socket.socket:
    """A socket that listens on the given port, or on the next free one. Raises: ConfigError."""
    host, wanted = str(args.flags["--host"]), int(str(args.flags["--port"]))
    if not 0 <= wanted < 2**16:
        raise ConfigError(f"--port {wanted}: must be from 0 (any) to 65535, such as --port 5000")
    for port in range(wanted, min(wanted + PORTS, 2**16)):
        if (listener := _bind(host, port)) is not None:
            break
    else:
        raise ConfigError(f"--port {wanted}: it and the next {PORTS - 1} are taken; give another")
    address, port = listener.getsockname()[:2]
    if wanted not in (0, port):
        console.note(f"port {wanted} is taken; using {port}")
    if not ipaddress.ip_address(address).is_loopback:
        console.note(
            f"warning: the dashboard has no password and listens on {address}: "
            f"anyone who can reach port {port} can read, change and delete its contents"
        )
    return listener


def _bind(host: str, port: int) -> socket.socket | None:
    """A listening socket; None if the port is taken. Raises: ConfigError for an address that cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address ({error}); leave it out for this machine alone") from None
    listener = socket.socket(family, kind, protocol)
    if os.name == "posix":  # else a port stays taken for a minute after its server ended
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
        return listener
    except PermissionError:
        raise ConfigError(f"--port {port}: only root may use it; give one from 1024 on") from None
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise ConfigError(f"--host {host}: is no address of this machine ({error.strerror})") from None


def _allowed_hosts(listener: socket.socket, args: CommandArgs) -> list[str]:
    """The HOST:PORT values by which a browser may address the server."""
    address, port = listener.getsockname()[:2]
    names = ["127.0.0.1", "localhost", address, str(args.flags["--host"])]
    if not ipaddress.ip_address(address).is_loopback:
        found = [each.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for each in addresses]
        names += [socket.gethostname(), socket.getfqdn(), *found]
    return [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in dict.fromkeys(names)]


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _present(server: str, page: str, about: str, args: CommandArgs) -> None:
    """Print the page's address, and open it in a graphical browser if there is one."""
    console.say(f"{redact(server)}/{page}  ({about})")
    remote, chosen = os.environ.get("SSH_CONNECTION"), os.environ.get("BROWSER")  # an editor over ssh sets BROWSER
    if remote and not chosen and server.startswith(("http://127.", "http://[::1]")):
        port = server.rpartition(":")[2]
        console.note(f"from your own machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then this address")
    if args.flags.get("--no-browser") or (remote and not chosen):
        return
    with suppress(webbrowser.Error):
        if chosen or type(webbrowser.get()) is not webbrowser.GenericBrowser:  # that is lynx and the like
            # Some return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(f"{server}/{page}",), daemon=True).start()
