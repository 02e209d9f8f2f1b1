"""The worker's image, built where no registry is as well."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import require
from tests.support.docker import require_docker

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "continuum-test"
DEBIAN = "python:3.9-slim"
"""The sandbox image; where `make sandbox-image` made it, it is Debian's and has a Python that is new enough."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_BASE = f"""
FROM {DEBIAN}
COPY {CERTIFICATES.name} {CERTIFICATES}
ENV SSL_CERT_FILE={CERTIFICATES} PIP_CERT={CERTIFICATES}
RUN apt-get -qq update && apt-get -qq install --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists
"""


@cache
def build_image() -> str:
    """The name of the image, made of what is checked out here."""
    require_docker()
    require("docker-image", shutil.which("docker") is not None, "the command docker builds it")
    base = "python:3.12-slim"
    new_enough = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "python3", DEBIAN, "-c"]
    if subprocess.run([*new_enough, "import tomllib"], capture_output=True, check=False, timeout=60).returncode == 0:
        base = f"{IMAGE}-base"
        with TemporaryDirectory() as folder:
            shutil.copy(CERTIFICATES, folder)
            (Path(folder) / "Dockerfile").write_text(_BASE)
            _build(base, folder)
    _build(IMAGE, str(ROOT), "-f", str(ROOT / "deploy/Dockerfile"), "--build-arg", f"BASE={base}")
    return IMAGE


def _build(name: str, folder: str, *options: str) -> None:
    command = ["docker", "build", "--network", "host", "-t", name, *options, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
