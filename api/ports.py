"""The ports of the service: whether they are free, and who holds one that is not."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import psutil

from cluster.errors import HoldfastError
from cluster.settings import Settings

SETTINGS_BY_PART = {
    "Ray": ("ray_port", "ray_dashboard_port"),
    "MLflow": ("mlflow_port",),
    "API": ("api_port",),
}


def check_ports(settings: Settings, parts: tuple[str, ...]) -> None:
    """Raises ``HoldfastError`` ``port_taken`` that names every port of these parts that cannot be had."""
    faults: list[dict[str, str]] = []
    seen: dict[int, str] = {}
    for part in parts:
        for name in SETTINGS_BY_PART[part]:
            port = getattr(settings, name)
            if port in seen:
                faults.append(_fault(name, f"{part} and {seen[port]} both want port {port}; give one of them another value"))
            elif not is_free(settings.api_host if part == "API" else "127.0.0.1", port):
                faults.append(_fault(name, f"port {port} for {part} is taken by {holder(port)}; end that, or set {variable(name)} to a free port"))
            seen[port] = part
    if faults:
        ports = "a port" if len(faults) == 1 else f"{len(faults)} ports"
        raise HoldfastError(f"{ports} of the service cannot be had", reason="port_taken", details={"faults": faults})


def _fault(name: str, detail: str) -> dict[str, str]:
    return {"pointer": variable(name), "detail": detail, "code": "port_taken"}


def variable(name: str) -> str:
    return f"HOLDFAST_{name.upper()}"


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now; connections of an earlier one that are still closing do not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """The process that listens on the port, for people."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({' '.join(process.cmdline()).strip()[:100] or process.name()})"
    return "a process that this user may not see"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
