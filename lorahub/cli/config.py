"""lorahub config"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue, options, output

_KEYS = click.Choice(["home", "database_url", "store"])


@click.group(name="config", short_help="Read and write settings.")
def command() -> None:
    """Read and write settings: home, database_url, store.

    In force is what the environment says (LORAHUB_HOME, LORAHUB_DATABASE_URL, LORAHUB_STORE), else lorahub.toml in
    this folder or one above, else the user file, which `config set` writes.

    \b
    Examples:
      lorahub config show --origin
      lorahub config set home /data/lorahub
      lorahub config set database_url postgresql+psycopg://anna@db.example/lorahub
    """


@command.command(short_help="Print all settings in force.")
@click.option("--origin", is_flag=True, help="Say where each comes from.")
@options.json_option
def show(origin: bool, as_json: bool) -> None:
    """Print all settings in force, passwords excepted.

    \b
    Example:
      lorahub config show --origin
    """
    from lorahub.workspace.settings import user_file

    values = _values()
    result = {"command": "config show", "settings": values, "user_file": str(user_file())}
    output.emit(result, lambda found: [_line(name, each, origin) for name, each in found["settings"].items()], as_json)


@command.command(short_help="Print one setting in force.")
@click.argument("key", type=_KEYS)
@options.json_option
def get(key: str, as_json: bool) -> None:
    """Print one setting in force; an empty line where the default is.

    \b
    Example:
      lorahub config get home
    """
    each = _values()[key]
    result = {"command": "config get", "key": key, **each}
    output.emit(result, lambda found: [found["value"] or ""], as_json)


@command.command(name="set", short_help="Write a setting into the user file.")
@click.argument("key", type=_KEYS)
@click.argument("value")
@catalogue.dry_run_option
@options.json_option
def set_(key: str, value: str, dry_run: bool, as_json: bool) -> None:
    """Write a setting into the user file; all else in it stays as it is.

    \b
    Example:
      lorahub config set home /data/lorahub
    """
    _change("set", key, value, dry_run, as_json)


@command.command(short_help="Take a setting out of the user file.")
@click.argument("key", type=_KEYS)
@catalogue.dry_run_option
@options.json_option
def unset(key: str, dry_run: bool, as_json: bool) -> None:
    """Take a setting out of the user file; what is not there is no error.

    \b
    Example:
      lorahub config unset database_url
    """
    _change("unset", key, None, dry_run, as_json)


def _change(verb: str, key: str, value: str | None, dry_run: bool, as_json: bool) -> None:
    from lorahub.workspace.settings import KEYS, change

    path = change(key, value, dry_run=dry_run)
    each = _values()[key]
    done = "would have changed" if dry_run else "changed"
    result = {"command": f"config {verb}", "dry_run": dry_run, "key": key, "user_file": str(path), **each}
    output.emit(result, lambda _: [f"{done} {key} in {path}"], as_json)
    if each["origin"].startswith("environment") or each["origin"].startswith("project"):
        click.echo(f"Now in force is {KEYS[key]} or the project's: {each['origin']}", err=True)


def _values() -> dict[str, dict[str, Any]]:
    from lorahub.workspace.settings import KEYS, settings

    used = settings()
    values = {key: getattr(used, key) for key in KEYS}
    return {
        key: {"value": None if value is None else _without_password(str(value)), "origin": used.origins[key]}
        for key, value in values.items()
    }


def _without_password(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    address, at, host = rest.rpartition("@")
    user, colon, _ = address.partition(":")
    return f"{scheme}{separator}{user}:***@{host}" if separator and at and colon else value


def _line(name: str, each: dict[str, Any], origin: bool) -> str:
    value = "(default)" if each["value"] is None else each["value"]
    return f"{name} = {value}" + (f"   [{each['origin']}]" if origin else "")
