"""Fixtures that tests of several folders share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast examples are made or run says how busy the machine is, not whether the code is right.
settings.register_profile("lorahub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lorahub")


@pytest.fixture(scope="session")
def real_loras() -> Path:
    """The folder of published LoRA files, which is no part of the repository."""
    folder = Path(__file__).parents[1].parent / "shared" / "data" / "real-loras"
    if not folder.is_dir():
        pytest.skip(f"the published LoRA files are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server on which databases can be created.

    The one that `LORAHUB_TEST_POSTGRES` names; otherwise a private cluster is started from the binaries of Debian's
    `postgresql` package, as an unprivileged user, on a socket of its own. Without either the test is skipped.
    """
    given = os.environ.get("LORAHUB_TEST_POSTGRES")
    if given:
        yield given
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL: apt-get install postgresql, or set LORAHUB_TEST_POSTGRES to a server's URL")
    folder = Path(tempfile.mkdtemp(prefix="lorahub-pg-"))
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*user, str(found[-1].parent / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd="/", timeout=60)

    settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=60"
    try:
        run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", settings)
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
    finally:
        shutil.rmtree(folder)
