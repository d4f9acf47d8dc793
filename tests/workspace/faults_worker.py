"""What other processes do to a registry in the tests of faults: `python faults_worker.py VERB HOME FOLDER [NUMBER]`.

Every acknowledged add is one line, `NAME:VERSION SHA256`, written after the verb has returned. Weights are not read, so that
torch is not imported; `kill` forks, so that each of its children starts in no time.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from lorahub.errors import LorahubError
from lorahub.workspace.adding import add
from lorahub.workspace.checking import verify
from lorahub.workspace.core import Workspace
from lorahub.workspace.scanning import scan


def churn(home: Path, folder: Path, seed: int, acknowledge: int) -> None:
    """Add and scan without end, while files come, go and change."""
    chance = random.Random(seed)
    files = sorted((folder / "pool").glob("*.safetensors"))
    loras = folder / "loras"
    with Workspace.open(home) as workspace:
        while True:
            file = chance.choice(files)
            name = f"a{chance.randrange(6)}"
            [added] = add(workspace, [file], name=name, weights=False).added
            os.write(acknowledge, f"{added.reference} {added.sha256}\n".encode())
            place = loras / f"{chance.randrange(8)}" / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                place.unlink()
            else:
                partial = place.with_suffix(".partial")
                partial.write_bytes(file.read_bytes())
                partial.rename(place)
            scan(workspace, [loras], hash=chance.random() < 0.7)


def kill(home: Path, folder: Path, count: int) -> None:
    """Kill a churning child `count` times, looking each time whether what it acknowledged is there and whole."""
    chance, acknowledged = random.Random(1), set()
    for number in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            churn(home, folder, number, writer)
        os.close(writer)
        if number % 2:  # else it is killed while it opens the registry, or in its first add
            select.select([reader], [], [], 30)
        time.sleep(chance.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as lines:
            acknowledged |= {line for line in lines if line.endswith("\n")}
        with Workspace.open(home) as workspace:
            assert workspace.registry.check() == (), workspace.registry.check()
            for line in acknowledged:
                reference, sha256 = line.split()
                record = workspace.get(reference)
                assert (record.file_sha256, record.stored) == (sha256, True), line
    assert len(acknowledged) > 5, "nothing was tested: every child was killed before its first add"
    with Workspace.open(home) as workspace:
        scan(workspace, [folder / "loras"])
        result = verify(workspace)
        assert not result.damaged, result
        places = {str(Path(place.root) / place.relpath) for place in workspace.registry.locations(missing=False)}
        assert places == {str(path) for path in (folder / "loras").rglob("*.safetensors")}
        print(len(acknowledged), "acknowledged;", len(workspace.registry.find()), "versions")


def together(home: Path, folder: Path, number: int) -> None:
    """Add the same files as everybody, and others under a name of our own."""
    files = sorted((folder / "pool").glob("*.safetensors"))
    with Workspace.open(home) as workspace:
        for index, file in enumerate(files):
            [shared] = add(workspace, [file], weights=False).added
            print(shared.reference, shared.sha256)
            if index % 8 == number:
                [own] = add(workspace, [file], name=f"own-{number}", weights=False).added
                print(own.reference, own.sha256)


def full(home: Path, folder: Path, limit: int) -> None:
    """Add where no file may be larger than `limit` bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Workspace.open(home) as workspace:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            add(workspace, [next((folder / "pool").glob("*.safetensors"))], weights=False)
        except LorahubError as error:
            print(error)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    verb, home, folder, number = sys.argv[1:]
    {"kill": kill, "together": together, "full": full}[verb](Path(home), Path(folder), int(number))
