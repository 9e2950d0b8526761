"""Fetches the programs that the tests use beside ours, where this machine can.

grpcurl, grpc-health-probe, kustomize and stripe-mock are built by Go; Chromium, kcat, promtool and Prometheus come
from Debian's packages. Where one cannot be had, the tests that need it are skipped and say so.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

GO_TOOLS = {
    "grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4",
    "grpc-health-probe": "github.com/grpc-ecosystem/grpc-health-probe@v0.4.61",
    "stripe-mock": "github.com/stripe/stripe-mock@v0.203.0",
    "kustomize": "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1",
}
DEBIAN_PACKAGES = ("kcat", "chromium")
OF_PROMETHEUS = ("promtool", "prometheus")


def folder() -> pathlib.Path:
    """Returns where fetched programs are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "orderflow" / "tools"


def find(name: str) -> str | None:
    """Returns the program's path: fetched, or installed on this machine."""
    fetched = folder() / name
    return str(fetched) if fetched.exists() else shutil.which(name)


def main() -> None:
    """Fetches what is missing."""
    folder().mkdir(parents=True, exist_ok=True)
    for name, module in GO_TOOLS.items():
        if find(name) is None and shutil.which("go"):
            _try(f"building {name} (once, up to a minute)", ["go", "install", module], {"GOBIN": str(folder())})
    packages = [name for name in DEBIAN_PACKAGES if find(name) is None]
    lacks_prometheus = any(find(name) is None for name in OF_PROMETHEUS)
    if (packages or lacks_prometheus) and shutil.which("apt-get") and os.geteuid() == 0:
        _try("updating Debian's package lists", ["apt-get", "update", "-qq"], {})
        for name in packages:
            install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", name]
            _try(f"installing {name}", install, {"DEBIAN_FRONTEND": "noninteractive"})
    if lacks_prometheus and shutil.which("apt-get"):
        _take_prometheus()
    missing = [name for name in (*GO_TOOLS, *DEBIAN_PACKAGES, *OF_PROMETHEUS) if find(name) is None]
    if missing:
        print(f"not to be had here: {', '.join(missing)}; tests that need them are skipped", file=sys.stderr)  # noqa: T201


def _take_prometheus() -> None:
    """Takes its programs out of the package, which would start a server if it were installed."""
    with tempfile.TemporaryDirectory(prefix="orderflow-") as name:
        scratch = pathlib.Path(name)
        scratch.chmod(0o755)  # apt-get downloads as a user of its own
        take = f"cd {name} && apt-get download -qq prometheus && dpkg-deb --extract prometheus_*.deb ."
        _try("fetching Prometheus and promtool", ["sh", "-c", take], {})
        for name in OF_PROMETHEUS:
            if (scratch / "usr/bin" / name).exists():
                shutil.copy2(scratch / "usr/bin" / name, folder() / name)


def _try(what: str, command: list[str], environment: dict[str, str]) -> None:
    print(what, file=sys.stderr)  # noqa: T201
    try:
        done = subprocess.run(  # noqa: S603
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=600
        )
    except subprocess.TimeoutExpired:
        print("failed: not done within 600 s", file=sys.stderr)  # noqa: T201
        return
    if done.returncode:
        print(f"failed: {done.stderr.strip()[-500:]}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
