"""The table of merge methods: what each does, costs and takes. Plain data: nothing here needs torch.

A method is a row over two axes: how each adapter's ΔW is made sparse, and how the sparse ones agree on one value. Methods
that are not `dense` stay in the factors and never form ΔW.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lorahub.errors import UsageError

Value = float | int | str


@dataclass(frozen=True)
class Setting:
    """One setting of a method. Numbers lie in `range`, written like "(0, 1]"; texts are one of `choices`."""

    type: type[float] | type[int] | type[str]
    default: Value
    help: str
    range: str = ""
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What a value must be, for messages and listings."""
        if self.choices:
            return " or ".join(self.choices)
        return f"{'a whole number' if self.type is int else 'a number'} in {self.range}"

    def read(self, value: object) -> Value | None:
        """The value, parsed when it is text; None when it is not what is expected."""
        if self.type is str:
            return value if isinstance(value, str) and value in self.choices else None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return None
        try:
            number = self.type(value)
        except (ValueError, OverflowError):
            return None
        return number if (isinstance(value, str) or number == value) and self._contains(float(number)) else None

    def _contains(self, number: float) -> bool:
        low, high = (float(bound) for bound in self.range[1:-1].split(","))
        above = number >= low if self.range[0] == "[" else number > low
        below = number <= high if self.range[-1] == "]" else number < high
        return above and below


@dataclass(frozen=True)
class Method:
    """A row of the table.

    sparsify: what each adapter loses first: none, trim, dare, della or breadcrumbs.
    consensus: how one value is made of several: sum, ties (elected mean), slerp, tsv or iso_c.
    draws: whether the result depends on `seed`. needs: how many adapters it takes.
    dense: whether the merged ΔW has full rank, so that a rank rule must say what to keep of it.
    """

    name: str
    summary: str
    paper: str
    cost: str
    sparsify: Literal["none", "trim", "dare", "della", "breadcrumbs"]
    consensus: Literal["sum", "ties", "slerp", "tsv", "iso_c"]
    settings: Mapping[str, Setting]
    needs: Literal["two", "any"] = "any"
    dense: bool = True
    joint: bool = False
    """Whether the axes apply to the adapters' shares of a joint basis instead of to ΔW."""

    @property
    def draws(self) -> bool:
        return "seed" in self.settings


_DENSITY = Setting(float, 0.5, "Share of each layer's numbers that is kept.", "(0, 1]")
_GAMMA = Setting(float, 0.01, "Share of each layer's numbers, the largest, that is cut off as outliers.", "[0, 1)")
_EPSILON = Setting(
    float, 0.1, "How far the chance to be kept departs from density, from smallest to largest.", "[0, 0.5)"
)
_SEED = Setting(int, 0, "Where the random draws start.", "[0, 18446744073709551615]")
_ELECT = Setting(
    str,
    "sum",
    "What elects a number's sign: the sum of the weighted values, or the count of signs.",
    "",
    ("sum", "count"),
)
_DIVISORS = ("none", "count", "weights")
_AGREEING = Setting(
    str,
    "count",
    "What the sum of the agreeing values is divided by: nothing, their count, or their weights.",
    "",
    _DIVISORS,
)
_ALL = Setting(
    str, "none", "What the sum is divided by: nothing, the count of adapters, or the sum of weights.", "", _DIVISORS
)
_SHARE = Setting(float, 1.0, "Share of each adapter's singular values that is kept, the largest.", "(0, 1]")

_TRIM, _SUM = {"density": _DENSITY}, {"divide": _ALL}
_DARE = {"density": _DENSITY, "seed": _SEED}
_DELLA = {"density": _DENSITY, "epsilon": _EPSILON, "seed": _SEED}
_CRUMBS = {"density": Setting(float, 0.9, _DENSITY.help, _DENSITY.range), "gamma": _GAMMA}
_TIES = {"elect": _ELECT, "divide": _AGREEING}

_TIES_PAPER, _DARE_PAPER = "arXiv 2306.01708", "arXiv 2311.03099"
_DELLA_PAPER, _CRUMBS_PAPER, _KNOTS_PAPER = "arXiv 2406.11617", "arXiv 2312.06795", "arXiv 2410.19735"
_SELECT = "dense ΔW: three products a layer and adapter, and its rank reduction"
_DRAW = "dense ΔW: one product and one draw a layer and adapter, and its rank reduction"
_SORT = "dense ΔW: sorts every row of every adapter, and its rank reduction"
_FACTORS = "factors only: about an exact combination with a rank"

METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method("ties", "Keep each adapter's largest numbers, elect a sign for each, average those that have it.",
               _TIES_PAPER, _SELECT, "trim", "ties", _TRIM | _TIES),
        Method("magnitude_prune", "Keep each adapter's largest numbers and add them.",
               _TIES_PAPER, _SELECT, "trim", "sum", _TRIM | _SUM),
        Method("dare_linear", "Drop numbers at random, make up for it in the others, and add.",
               _DARE_PAPER, _DRAW, "dare", "sum", _DARE | _SUM),
        Method("dare_ties", "Drop numbers at random, make up for it, elect signs, average those that agree.",
               _DARE_PAPER, _DRAW, "dare", "ties", _DARE | _TIES),
        Method("della_linear", "Drop at random, small numbers of a row more often, make up for it, and add.",
               _DELLA_PAPER, _SORT, "della", "sum", _DELLA | _SUM),
        Method("della", "Drop at random, small numbers of a row more often, make up for it, elect signs, average.",
               _DELLA_PAPER, _SORT, "della", "ties", _DELLA | _TIES),
        Method("breadcrumbs", "Cut off each adapter's largest numbers (outliers) and its smallest, and add.",
               _CRUMBS_PAPER, _SELECT, "breadcrumbs", "sum", _CRUMBS | _SUM),
        Method("breadcrumbs_ties", "Cut off outliers and the smallest numbers, elect signs, average those that agree.",
               _CRUMBS_PAPER, _SELECT, "breadcrumbs", "ties", _CRUMBS | _TIES),
        Method("slerp", "Turn the first adapter towards the second along an arc; the weights say how far.",
               "Shoemake, SIGGRAPH 1985", _FACTORS, "none", "slerp", {}, needs="two", dense=False),
        Method("knots_ties", "TIES on the adapters' shares of their joint singular basis.",
               _KNOTS_PAPER, _FACTORS, "trim", "ties", _TRIM | _TIES, dense=False, joint=True),
        Method("knots_dare", "DARE, then elected signs, on the adapters' shares of their joint singular basis.",
               _KNOTS_PAPER, _FACTORS, "dare", "ties", _DARE | _TIES, dense=False, joint=True),
        Method("tsv", "Add the adapters with their singular vectors made orthogonal to each other's (TSV-Merge).",
               "arXiv 2412.00081", _FACTORS, "none", "tsv", {"share": _SHARE}, dense=False),
        Method("iso_c", "Add the adapters, then give every direction of the sum the same strength (Iso-C).",
               "arXiv 2502.04959", _FACTORS, "none", "iso_c", {}, dense=False),
    )
}  # fmt: skip


def find(method: str) -> Method:
    """The row of a method. Raises UsageError naming all methods for an unknown one."""
    if method not in METHODS:
        raise UsageError(f"no merge method is called {method!r}; expected one of {', '.join(METHODS)}")
    return METHODS[method]


def check_settings(method: str, given: Mapping[str, object]) -> dict[str, Value]:
    """All settings of a method: those given, parsed and checked, and defaults for the rest.

    given: numbers, or text as it was typed. Raises UsageError naming what is known or expected.
    """
    known = find(method).settings
    checked = {name: setting.default for name, setting in known.items()}
    for name, value in given.items():
        if name not in known:
            takes = f"its settings are {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{method} has no setting {name!r}; {takes}")
        number = known[name].read(value)
        if number is None:
            raise UsageError(f"{method}: {name} must be {known[name].expected}, got {value!r}")
        checked[name] = number
    if "epsilon" in checked:
        density, epsilon = float(checked["density"]), float(checked["epsilon"])
        if density < 1 and not (density - epsilon > 0 and density + epsilon <= 1):
            raise UsageError(
                f"{method}: density ± epsilon must lie within 0 and 1, got {density} ± {epsilon}: give a smaller epsilon"
            )
    return checked


def check_weights(method: str, weights: tuple[float, ...], adapters: int) -> None:
    """Raises UsageError unless there is one finite weight for each of as many adapters as the method takes."""
    if adapters == 0 or (find(method).needs == "two" and adapters != 2):
        raise UsageError(
            f"{method} merges {'two adapters' if find(method).needs == 'two' else 'adapters'}, got {adapters}"
        )
    if len(weights) != adapters:
        raise UsageError(f"expected one weight for each of {adapters} adapters, got {len(weights)}")
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError(f"weights must be finite numbers, got {', '.join(map(str, weights))}")
    if find(method).consensus == "slerp" and (min(weights) < 0 or sum(weights) == 0):
        raise UsageError(f"{method} turns by weight2 / (weight1 + weight2): they must not be negative, nor both 0")
