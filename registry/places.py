"""The verbs of the registry for files in folders that users own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from registry import locations, placing, search
from registry.connected import Connected
from registry.records import Facts, Location
from registry.resolve import version_row


class Places(Connected):
    """Where files lie, and which version each is."""

    def place(
        self,
        location: Location,
        facts: Facts,
        *,
        names: Iterable[str],
        norms: Mapping[str, float] | None = None,
    ) -> tuple[str, str]:
        """Record what a file in a user's folder was found to be; returns the reference of its version, and how it comes to
        lie there: `new`, `same`, `moved` or `replaced`. `names` are tried in order for a file never seen.

        Raises:
            InvalidError: all of `names` are taken.
        """
        with self._writing() as session:
            row, outcome = placing.place(session, location, facts, norms, names)
            return f"{row.adapter.name}:{row.number}", outcome

    def move(self, before: Location, after: Location) -> bool:
        """Say that the file at one place is at another now; false if none was recorded there, or one is here already."""
        with self._writing() as session:
            return placing.move(session, before, after)

    def roots(self) -> tuple[str, ...]:
        """The folders under which files were recorded."""
        with self._reading() as session:
            return locations.roots(session)

    def locate(self, reference: str, location: Location) -> None:
        """Record that a version's file lies at a place, instead of what lay there before."""
        with self._writing() as session:
            row = version_row(session, reference)
            locations.locate(session, row, location)
            search.index(session, row.adapter_id)

    def locations(
        self,
        *,
        root: str | None = None,
        reference: str | None = None,
        missing: bool | None = None,
        hashed: bool | None = None,
    ) -> tuple[Location, ...]:
        """Places under a root, of a version, missing or not, of versions that have been hashed or not."""
        with self._reading() as session:
            return locations.find(session, root, reference, missing, hashed)

    def mark_missing(self, root: str, relpaths: Iterable[str]) -> int:
        """Mark places whose file is not there; nothing is deleted. Returns how many were there until now."""
        with self._writing() as session:
            return locations.mark_missing(session, root, relpaths)

    def mark_present(self, root: str, relpaths: Iterable[str]) -> int:
        """Undo `mark_missing` for places whose file is there again; returns how many were missing until now."""
        with self._writing() as session:
            return locations.mark_present(session, root, relpaths)

    def forget_locations(self, root: str, relpaths: Iterable[str]) -> int:
        """Delete places, not versions; returns how many there were."""
        with self._writing() as session:
            return locations.forget(session, root, relpaths)
