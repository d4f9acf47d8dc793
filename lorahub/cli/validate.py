"""lorahub validate"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from lorahub.cli import options, output, picturing

if TYPE_CHECKING:
    from lorahub.validate.report import Report

EXIT_CODES = {"pass": 0, "warning": 0, "fail": 7, "inconclusive": 8}


@click.command(cls=picturing.Remembering, short_help="Prove that an adapter is what it claims to be, and may be used.")
@click.argument("expression", type=options.Expression())
@click.option(
    "--against", metavar="EXPRESSION", type=options.Expression(), help="Also prove that it equals this, layer by layer."
)
@click.option(
    "--for",
    "targets",
    type=click.Choice(["diffusers", "comfyui"]),
    multiple=True,
    help="What this program would lose is a failure, instead of a warning.",
)
@click.option("--only", metavar="CHECK", multiple=True, help="Run only this check; may be repeated.")
@click.option(
    "--parent",
    "parents",
    type=click.Path(exists=True),
    multiple=True,
    help="A file or folder with the sources of a merged file.",
)
@picturing.base_model_options(required=False)
@picturing.picture_options
@picturing.accelerator_option
@click.option("--steps", type=picturing.Numbers(), metavar="N,N...", help="Columns of the figure. [1,2,4,8]")
@click.option("--sweep", metavar="NAME=FROM:TO:BY", help="Draw with these weights of one operand.")
@click.option("--numeric", is_flag=True, help="Also compare run time, fused and baked, layer by layer.")
@click.option(
    "-o", "--output", "page", type=click.Path(dir_okay=False), metavar="FILE", help="Also write a page: report.html."
)
@click.option(
    "--sarif", "sarif_file", type=click.Path(dir_okay=False), metavar="FILE", help="Also write it as SARIF 2.1.0."
)
@click.option("--no-record", is_flag=True, help="Do not keep the findings in the registry.")
@options.base_option
@picturing.device_option
@options.pickle_option
@options.json_option
def command(
    expression: str, page: str | None, sarif_file: str | None, no_record: bool, as_json: bool, **given: Any
) -> None:
    """Prove that an adapter, or a combination, is what it claims to be, and may be used.

    EXPRESSION is a file or a name, or like "0.8*style + 1.0*lcm", which is validated as the vector it makes, with
    each operand's file. With a base model and prompts it is drawn at few and at many steps, and the pictures are
    scored. Findings are kept with a version of the registry (see `show`). Exits with 0 on a pass (warnings
    allowed), 7 when a check fails, 8 when something cannot be judged.

    \b
    Examples:
      lorahub validate papercut.safetensors
      lorahub validate "0.8*papercut + 1.0*lcm" --json
      lorahub validate merged.safetensors --against "0.8*papercut + 1.0*lcm"
      lorahub validate fast --for diffusers --sarif findings.sarif
      lorahub validate "papercut + lcm" --base-model sdxl/ --prompt "a fox" --sweep lcm=0.6:1.2:0.2 -o report.html
    """
    pictures = picturing.wish(given)
    with output.progress("validating") as advance:
        from lorahub.validate.page import write_page
        from lorahub.validate.running import validate
        from lorahub.validate.sarif import write_sarif

        report = validate(
            expression, pictures=pictures, record=not no_record, command=picturing.words(), progress=advance, **given
        )
        if sarif_file is not None:
            write_sarif(report, sarif_file)
        if page is not None:
            write_page(report, page)
    output.emit(_as_result(report), _as_lines, as_json)
    click.get_current_context().exit(EXIT_CODES[report.verdict.value])


def _as_result(report: Report) -> dict[str, Any]:
    facts = report.to_json()
    return {"command": "validate", "ran": facts.pop("command"), **facts}


def _as_lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['subject']}: {result['verdict']} ({result['base'] or 'base not known'})"
    for finding in result["findings"]:
        if finding["severity"] != "pass":
            of = f" ({finding['of']})" if finding["of"] else ""
            yield f"  {finding['severity']}: {finding['check']}{of}: {finding['message']}"
    severities = Counter(finding["severity"] for finding in result["findings"])
    yield f"  {severities['pass']} of {sum(severities.values())} findings are passes"
