"""`mnistexp ui`: the dashboard of the runs, or with --optuna of the studies, on this machine alone."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.compose import ParsedOverrides
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.storage.urls import redact
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.runs import resolved_uri

PORTS = 50  # that are tried, from the given one on


def ui(request: ParsedOverrides, own: CommandArgs) -> int:
    """Serve a dashboard until Ctrl-C or SIGTERM. Returns: 0, since that is how one ends it."""
    config = configs.compose(request)
    with suppress(KeyboardInterrupt):  # not 130: nothing was interrupted, and `make ui` would call it an error
        (_optuna if own.flags.get("--optuna") else _mlflow)(config, own)
    return 0


def _mlflow(config: Config, own: CommandArgs) -> None:
    from mnistexp.dashboards import mlflow_ui

    if config.tracking.name == "none":
        raise ConfigError("tracking=none: no run is logged, so there is none to show; leave it out, or give --optuna")
    uri = resolved_uri(config.tracking)
    experiment = config.tracking.experiment or run_context.study_name(config)
    mlflow_ui.check(uri)
    if uri.startswith("http"):
        page = mlflow_ui.first_page(uri, experiment)
        _present(uri.rstrip("/"), page, "a server of its own: nothing was started here", own)
        return
    listener, url = _listen(own)
    about = f"MLflow on {redact(uri).removeprefix('sqlite:///')}; Ctrl-C ends it"
    with listener:
        console.note("starting MLflow's dashboard; it takes a few seconds")
        page = mlflow_ui.first_page(uri, experiment)
        mlflow_ui.serve(uri, page, listener, _hosts(own, listener), lambda: _present(url, "", about, own))


def _optuna(config: Config, own: CommandArgs) -> None:
    from mnistexp.dashboards import optuna_ui

    optuna_ui.check_installed()
    address = config.study.storage
    listener, url = _listen(own)
    console.note("starting Optuna's dashboard; it takes a few seconds")
    about = f"Optuna on {redact(address).removeprefix('sqlite:///')}; Ctrl-C ends it"
    hosts, name = _hosts(own, listener), run_context.study_name(config)
    with listener:
        optuna_ui.serve(address, name, listener, hosts, lambda page: _present(url, page, about, own))


# --------------------------------------------------------------------------------------------- where it listens


def _listen(own: CommandArgs) -> tuple[socket.socket, str]:
    """Take the port, or the next free one. Returns: the bound socket, and the address for a browser here."""
    host, wanted = str(own.flags["--host"]), int(str(own.flags["--port"]))
    if not 0 <= wanted < 2**16:
        raise ConfigError(f"--port {wanted}: must be from 0 (any) to 65535, such as --port 5000")
    listener = next(filter(None, (_bound(host, port) for port in _ports(wanted))), None)
    if listener is None:
        raise ConfigError(f"--port {wanted}: it and the next {PORTS - 1} are taken; give another")
    address, port = listener.getsockname()[:2]
    if wanted not in (0, port):
        console.note(f"port {wanted} is taken; taking {port}")
    if not ipaddress.ip_address(address).is_loopback:
        console.note(
            f"warning: it has no password, and listens on {address}: "
            f"whoever reaches port {port} can read, change and delete all that is in it"
        )
    name = "127.0.0.1" if address == "0.0.0.0" else "[::1]" if address == "::" else _written(address)
    return listener, f"http://{name}:{port}"


def _ports(wanted: int) -> Sequence[int]:
    return range(wanted, min(wanted + PORTS, 2**16)) if wanted else (0,)


def _bound(host: str, port: int) -> socket.socket | None:
    """A socket bound there, None if the port is taken. Raises: ConfigError if it can't be had at all."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address ({error}); leave it out for this machine alone") from None
    listener = socket.socket(family, kind, protocol)
    if os.name == "posix":  # one that ended a minute ago still has the port otherwise
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except PermissionError:
        raise ConfigError(f"--port {port}: only root may take it; give one from 1024 on") from None
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise ConfigError(f"--host {host}: is no address of this machine ({error.strerror})") from None
    return listener


def _hosts(own: CommandArgs, listener: socket.socket) -> list[str]:
    """By which HOST:PORT it may be called."""
    address, port = listener.getsockname()[:2]
    names = ["127.0.0.1", "localhost", _written(address), str(own.flags["--host"])]
    if not ipaddress.ip_address(address).is_loopback:
        names += [socket.gethostname(), socket.getfqdn(), *_addresses()]
    return [f"{name}:{port}" for name in dict.fromkeys(names)]


def _addresses() -> list[str]:
    """This machine's, as its own name resolves to them."""
    try:
        return [_written(str(found[4][0])) for found in socket.getaddrinfo(socket.gethostname(), None)]
    except OSError:
        return []


def _written(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# ------------------------------------------------------------------------------------------------ who looks at it


def _present(server: str, page: str, about: str, own: CommandArgs) -> None:
    """Say where it is, and open it where there is a browser."""
    url, text = ("/".join(filter(None, (place, page))) for place in (server, redact(server)))
    console.say(f"{text}  ({about})")
    if _over_ssh() and not os.environ.get("BROWSER") and server.startswith(("http://127.", "http://[::1]")):
        port = server.rpartition(":")[2]
        console.note(f"from your own machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then this address")
    if not own.flags.get("--no-browser") and (open_it := _browser()):
        threading.Thread(target=open_it, args=(url,), daemon=True).start()  # some return only when they are closed


def _over_ssh() -> bool:
    return bool(os.environ.get("SSH_CONNECTION"))


def _browser() -> Callable[[str], object] | None:
    """How to open a page; None where nobody would see it, or only in this terminal."""
    if os.environ.get("BROWSER"):  # an editor that is connected over ssh sets it
        return webbrowser.open
    shows = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if _over_ssh() or not shows:
        return None
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return None
    return None if type(found) is webbrowser.GenericBrowser else found.open  # lynx and the like
