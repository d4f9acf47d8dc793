"""Where adapters are on the Hub: one place for each name, with what both sides held when they were last alike."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry.connected import Connected
from registry.models import Adapter, RemoteRow
from registry.names import adapter_name
from registry.records import Remote
from registry.resolve import adapter_row


class Remotes(Connected):
    """The verbs about places on the Hub."""

    def put_remote(self, name: str, remote: Remote) -> None:
        """Say where the adapter of that name is on the Hub, instead of what was said before."""
        with self._writing() as session:
            session.merge(
                RemoteRow(
                    adapter_id=_adapter(session, name).id,
                    repo=remote.repo,
                    branch=remote.branch,
                    path=remote.path,
                    commit=remote.commit,
                    local_sha256=remote.local_sha256,
                    remote_sha256=remote.remote_sha256,
                    files=dict(remote.files),
                    said=None if remote.said is None else dict(remote.said),
                    synced_at=remote.synced_at or datetime.now(UTC),
                )
            )

    def remote(self, name: str) -> Remote | None:
        """Where the adapter of that name, live or in the trash, is on the Hub; None if nobody said."""
        with self._reading() as session:
            row = session.get(RemoteRow, _adapter(session, name).id)
            return None if row is None else _record(row)

    def remotes(self) -> dict[str, Remote]:
        """Name -> its place on the Hub, for every adapter that has one, in the order of the names."""
        query = select(Adapter.name, RemoteRow).join(RemoteRow, RemoteRow.adapter_id == Adapter.id)
        with self._reading() as session:
            return {name: _record(row) for name, row in session.execute(query.order_by(Adapter.name))}

    def forget_remote(self, name: str) -> None:
        """Forget where an adapter is on the Hub; nothing happens where nobody said."""
        with self._writing() as session:
            session.execute(delete(RemoteRow).where(RemoteRow.adapter_id == _adapter(session, name).id))


def _adapter(session: Session, name: str) -> Adapter:
    return adapter_row(session, adapter_name(name))


def _record(row: RemoteRow) -> Remote:
    return Remote(
        repo=row.repo,
        branch=row.branch,
        path=row.path,
        commit=row.commit,
        local_sha256=row.local_sha256,
        remote_sha256=row.remote_sha256,
        files=dict(row.files),
        said=None if row.said is None else dict(row.said),
        synced_at=row.synced_at,
    )
