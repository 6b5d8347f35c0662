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
from typing import Any

import psutil

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.storage.urls import redact
from mnistexp.terminal import console
from mnistexp.tracking import run_context, ui_pages
from mnistexp.tracking.store import resolved_uri

PORTS = 50  # how many ports are tried, from the given one on


def ui(request: ParsedOverrides, args: CommandArgs) -> int:
    """Serve a dashboard until Ctrl-C or SIGTERM. Returns: 0, because that is the usual end."""
    config = configs.compose(request)
    console.note("starting the dashboard; it takes a few seconds")
    with suppress(KeyboardInterrupt):
        (_optuna if args.flags.get("--optuna") else _mlflow)(config, args)
    return 0


def _mlflow(config: Config, args: CommandArgs) -> None:
    if config.tracking.name == "none":
        raise ConfigError("tracking=none: no run is logged, so there is none to show; leave it out, or give --optuna")
    uri = resolved_uri(config.tracking)
    page = ui_pages.first_page(uri, config.tracking.experiment or run_context.study_name(config))
    if uri.startswith("http"):
        _present(uri.rstrip("/"), page, "a server that runs already: nothing was started here", args)
        return
    with _listen(args) as listener:
        app = ui_pages.web_app(uri, _allowed_hosts(listener, args))
        _serve(app, listener, page, f"MLflow on {redact(uri).removeprefix('sqlite:///')}", args)


def _optuna(config: Config, args: CommandArgs) -> None:
    try:
        from optuna_dashboard import wsgi  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError("--optuna: needs the package optuna-dashboard; pip install 'mnistexp[dashboard]'") from None
    from mnistexp.study import database

    with database.reading(config.study.storage) as storage, _listen(args) as listener:
        study = {each.study_name: each._study_id for each in storage.get_all_studies()}.get(
            run_context.study_name(config)
        )
        if study is not None:  # as set_metric_names, which is experimental, does; else the page has `Objective 0`
            storage.set_study_system_attr(study, "study:metric_names", ["validation accuracy"])
        app, page = wsgi(storage), "dashboard/" if study is None else f"dashboard/studies/{study}"
        about = f"Optuna on {redact(config.study.storage).removeprefix('sqlite:///')}"
        _serve(_protected(app, _allowed_hosts(listener, args)), listener, page, about, args, interface="wsgi")


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


def _serve(app: Any, listener: socket.socket, page: str, about: str, args: CommandArgs, **more: Any) -> None:
    """Serve an application until a signal, and open one of its pages."""
    import uvicorn

    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **quiet, **more))
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, server.handle_exit)  # uvicorn handles SIGINT and SIGTERM itself
    address, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    _present(f"http://{_with_port(name, port)}", page, f"{about}; Ctrl-C ends it", args)
    server.run([listener])


def _present(server: str, page: str, about: str, args: CommandArgs) -> None:
    """Print the page's address, and open it in a graphical browser if there is one."""
    console.say(f"{redact(server)}/{page}  ({about})")
    chosen = os.environ.get("BROWSER")  # an editor over ssh sets it
    if args.flags.get("--no-browser") or (os.environ.get("SSH_CONNECTION") and not chosen):
        return
    with suppress(webbrowser.Error):
        if chosen or type(webbrowser.get()) is not webbrowser.GenericBrowser:  # that is lynx and the like
            threading.Thread(target=webbrowser.open, args=(f"{server}/{page}",), daemon=True).start()


def _listen(args: CommandArgs) -> socket.socket:
    """A socket that listens on the given port, or on the next free one. Raises: ConfigError."""
    host, wanted = str(args.flags["--host"]), int(str(args.flags["--port"]))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= wanted < 2**16:
        raise ConfigError(f"--port {wanted}: must be from 0 (any) to 65535, such as --port 5000")
    for port in range(wanted, min(wanted + PORTS, 2**16)):
        try:
            listener = socket.create_server((host, port), family=family)
            break
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                raise ConfigError(f"--host {host} --port {port}: can't be used ({error})") from None
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


def _allowed_hosts(listener: socket.socket, args: CommandArgs) -> list[str]:
    """The HOST:PORT values by which a browser may address the server."""
    address, port = listener.getsockname()[:2]
    names = ["127.0.0.1", "localhost", address, str(args.flags["--host"])]
    if not ipaddress.ip_address(address).is_loopback:
        found = [each.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for each in addresses]
        names += [socket.gethostname(), socket.getfqdn(), *found]
    return [_with_port(name, port) for name in dict.fromkeys(names)]


def _with_port(name: str, port: int) -> str:
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
