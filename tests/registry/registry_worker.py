"""What other processes do to a registry in the tests: `python registry_worker.py HOME URL VERB ARGUMENTS...`.

Every acknowledged change is one line on stdout, written after the verb has returned.
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

from registry import Facts, Registry


def acknowledge(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def put(registry: Registry, name: str, content: bytes) -> str:
    """Blob first, row after, as every caller must."""
    blob = registry.blobs.put(io.BytesIO(content))
    facts = Facts(file_sha256=blob.sha256, size=blob.size, format="kohya")
    return registry.add_version(name, facts, stored=True, tags=[name]).reference


def add(registry: Registry, worker: str, count: str) -> None:
    """The same files as everybody under one name, and others under a name of our own; and a counter in the notes."""
    for number in range(int(count)):
        acknowledge(put(registry, "shared", f"shared {number}".encode()))
        acknowledge(put(registry, f"own-{worker}", f"{worker} {number}".encode()))
        with registry.transaction():
            before = registry.get("counter").notes
            registry.edit("counter", notes=str(int(before) + 1))


def churn(registry: Registry, seed: str) -> None:
    """Add, tag, alias, remove, purge and collect without end."""
    number = 0
    while True:
        content = f"{seed} {number}".encode() * 2000
        acknowledge(f"{put(registry, f'a{number % 7}', content)} {hashlib.sha256(content).hexdigest()}")
        if number % 5 == 4:
            registry.alias(f"a{number % 7}", "prod", by=seed)
        if number % 4 == 3:
            put(registry, "gone", b"gone" + content)
            registry.remove("gone")
            registry.restore("gone")
            registry.remove("gone")
            registry.purge()
            registry.collect()
        number += 1


def read(registry: Registry, count: str) -> None:
    """Each listing must be of one moment: every adapter has all the versions its newest one says it has."""
    for _ in range(int(count)):
        for adapter in registry.list():
            assert adapter.versions == tuple(range(1, adapter.latest.number + 1)), adapter
    acknowledge("consistent")


def main() -> None:
    home, url, verb, *arguments = sys.argv[1:]
    with Registry.open(Path(home), database_url=url or None) as registry:
        if verb == "open":
            acknowledge("opened")
        else:
            {"add": add, "churn": churn, "read": read}[verb](registry, *arguments)


if __name__ == "__main__":
    main()
