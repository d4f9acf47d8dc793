"""combine: expressions over files, weights for parts of operands, and which base an ambiguous operand takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lorahub as lh
from lorahub import bases
from lorahub.algebra.recipe import Source, expression
from lorahub.errors import BaseMismatchError, NotFoundError, UsageError
from lorahub.files.building import AmbiguousBaseError
from lorahub.loading import combine, load, load_all
from tests.files import making

ATTN = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
ENCODER = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
STYLE = [f"{ATTN}.attn1.to_q", f"{ATTN}.attn2.to_k", "unet.conv_in"]
SHARP = [f"{ATTN}.attn1.to_q", f"{ATTN}.ff.net.2", ENCODER]


def raw(names: list[str], seed: int, base: str = "sd15") -> making.Trained:
    return making.trained(bases.get(base), names, seed=seed, alphas=(3.0, 1.0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, entered, with `style` in kohya spelling, `sharp` in that of diffusers, and an encoder alone."""
    making.written(making.kohya(raw(STYLE, 1)), tmp_path / "style.safetensors")
    sharp = raw(SHARP, 2)
    making.written(making.peft_keys(sharp), tmp_path / "sharp.safetensors", making.peft_metadata(sharp))
    making.written(making.kohya(raw([ENCODER], 3)), tmp_path / "encoder.safetensors")
    flux = raw(["transformer.single_transformer_blocks.0.proj_out"], 4, "flux1")
    making.written(making.kohya(flux), tmp_path / "flux.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def deltas() -> tuple[making.Deltas, making.Deltas]:
    return making.deltas(raw(STYLE, 1)), making.deltas(raw(SHARP, 2))


@pytest.mark.usefixtures("folder")
def test_an_expression_is_the_sum_of_its_operands_whatever_their_spellings() -> None:
    style, sharp = deltas()
    made = combine("0.8*style.safetensors - 1.5*./sharp.safetensors")
    assert made.base == "sd15"
    assert making.apart(making.mixture((0.8, style), (-1.5, sharp)), making.dense(made)) < 1e-9
    assert expression(made.recipe) == "0.8*style - 1.5*sharp"


@pytest.mark.usefixtures("folder")
def test_an_operand_that_comes_twice_is_loaded_once_and_its_weights_add_up() -> None:
    style, _ = deltas()
    made = combine("2*style.safetensors - 0.5*style.safetensors")
    assert making.apart(making.mixture((1.5, style)), making.dense(made)) < 1e-9
    assert {name: layer.rank for name, layer in made.layers.items()} == {
        n: layer.rank for n, layer in raw(STYLE, 1).items()
    }
    nothing = combine("style.safetensors - style.safetensors")
    assert all(layer.rank == 0 for layer in nothing.layers.values())
    assert lh.norm(nothing) == 0


@pytest.mark.usefixtures("folder")
def test_weights_multiply_the_matching_layers_of_their_operand() -> None:
    style, sharp = deltas()
    made = combine(
        "style.safetensors + sharp.safetensors",
        weights=[
            ("style.safetensors", "attn1", 0.5),
            ("style.safetensors", "unet", 3.0),
            ("sharp.safetensors", "^text", 0),
        ],
    )
    factors = [0.5, 3.0, 3.0]  # the first pattern that fits counts
    expected = making.mixture(
        (1.0, {name: factor * delta for factor, (name, delta) in zip(factors, style.items(), strict=True)}),
        (1.0, {name: delta for name, delta in sharp.items() if not name.startswith("text")}),
    )
    found = {name: delta for name, delta in making.dense(made).items() if bool(delta.any())}
    assert making.apart(expected, found) < 1e-9


@pytest.mark.usefixtures("folder")
def test_a_weight_for_all_operands_may_match_in_one_of_them_only() -> None:
    style, sharp = deltas()
    made = combine("style.safetensors + sharp.safetensors", weights=[("*", "^text_encoder", 2.0), ("*", "attn1", 0.5)])
    weight = {f"{ATTN}.attn1.to_q": 0.5, ENCODER: 2.0}
    expected = making.mixture(
        *((1.0, {name: weight.get(name, 1.0) * delta for name, delta in part.items()}) for part in (style, sharp))
    )
    assert making.apart(expected, making.dense(made)) < 1e-9


@pytest.mark.usefixtures("folder")
def test_of_equal_patterns_the_first_counts() -> None:
    _, sharp = deltas()
    made = combine("sharp.safetensors", weights=[("sharp.safetensors", "attn1", 0.5), ("*", "attn1", 7.0)])
    name = f"{ATTN}.attn1.to_q"
    assert making.apart({name: 0.5 * sharp[name]}, {name: making.dense(made)[name]}) < 1e-9


@pytest.mark.usefixtures("folder")
def test_weights_that_are_mistakes_are_refused() -> None:
    text = "style.safetensors + sharp.safetensors"
    with pytest.raises(UsageError, match=r"no operand 'stile' in the expression: it has sharp\.safetensors, style"):
        combine(text, weights=[("stile", "attn1", 0.5)])
    with pytest.raises(UsageError, match="no layer matches '^text'".replace("^", r"\^")):
        combine(text, weights=[("style.safetensors", "^text", 0.5)])
    with pytest.raises(UsageError, match="no layer of any operand matches 'attn9'"):
        combine(text, weights=[("*", "attn9", 0.5)])
    for operand in ("*", "style.safetensors"):
        with pytest.raises(UsageError, match=r"'\(' is not a regular expression"):
            combine(text, weights=[(operand, "(", 0.5)])


@pytest.mark.usefixtures("folder")
def test_an_ambiguous_operand_takes_the_base_of_the_others() -> None:
    with pytest.raises(AmbiguousBaseError):
        load("encoder.safetensors")
    for text in ("encoder.safetensors + style.safetensors", "style.safetensors + encoder.safetensors"):
        made = combine(text)
        assert made.base == "sd15"
        assert ENCODER in made.layers
    flux = combine("encoder.safetensors + flux.safetensors")
    assert flux.base == "flux1"
    assert flux.layers.keys() > {ENCODER}


def test_two_ambiguous_operands_settle_each_other(folder: Path) -> None:
    """An encoder fits SD 1.5, SDXL, Flux and more; this layer fits Flux and Qwen-Image: only Flux fits both."""
    both = raw(["transformer.transformer_blocks.0.attn.to_out.0"], 5, "flux1")
    making.written(making.kohya(both), folder / "double.safetensors")
    with pytest.raises(AmbiguousBaseError, match=r"\(flux1, qwen-image\)"):
        load("double.safetensors")
    assert combine("encoder.safetensors + double.safetensors").base == "flux1"


@pytest.mark.usefixtures("folder")
def test_an_ambiguity_that_the_others_do_not_settle_stays_an_error() -> None:
    with pytest.raises(AmbiguousBaseError, match="encoder fits several bases"):
        combine("2*encoder.safetensors")
    with pytest.raises(AmbiguousBaseError, match="encoder fits several bases"):
        combine("encoder.safetensors + style.safetensors + flux.safetensors")
    assert combine("2*encoder.safetensors", base="sdxl").base == "sdxl"


@pytest.mark.usefixtures("folder")
def test_different_bases_do_not_mix() -> None:
    with pytest.raises(BaseMismatchError, match=r"cannot add .*style.* \(sd15\) and .*flux.* \(flux1\)"):
        combine("style.safetensors + flux.safetensors")


@pytest.mark.usefixtures("folder")
def test_load_all_keeps_the_order_of_what_it_was_asked_for() -> None:
    found = load_all(["encoder.safetensors", "style.safetensors"])
    assert [adapter.name for adapter in found] == [
        load("encoder.safetensors", base="sd15").name,
        load("style.safetensors").name,
    ]
    assert {adapter.base for adapter in found} == {"sd15"}


@pytest.mark.usefixtures("folder")
def test_what_is_not_hashed_has_no_hash() -> None:
    """One file, and a folder of several."""
    lh.save(load("style.safetensors") + load("encoder.safetensors", base="sd15"), "both", format="peft")
    names = ["style.safetensors", "both"]
    for hashed in (True, False):
        recipes = [adapter.recipe for adapter in load_all(names, hashed=hashed)]
        assert [isinstance(recipe, Source) and bool(recipe.data_sha256) for recipe in recipes] == [hashed, hashed]


@pytest.mark.usefixtures("folder")
def test_what_is_not_there_is_told() -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        combine("style.safetensors + nothing.safetensors")


def test_a_state_dict_is_loaded_as_its_file_would_be(folder: Path) -> None:
    """In any spelling; without a name and a hash, since it has none."""
    found = load(making.kohya(raw(STYLE, 1)))
    assert making.apart(making.dense(load(folder / "style.safetensors")), making.dense(found)) < 1e-9
    assert isinstance(found.recipe, Source)
    assert found.recipe.data_sha256 == ""
    assert load(folder / "style.safetensors").recipe == load(str(folder / "style.safetensors")).recipe


@pytest.mark.usefixtures("folder")
def test_the_readme_example_in_one_line_of_python() -> None:
    fast = 0.8 * lh.load("style.safetensors") + 1.0 * lh.load("sharp.safetensors")
    saved = lh.save(lh.truncate(fast, lh.fixed(2)), "fast.safetensors")
    style, sharp = deltas()
    expected = making.mixture((0.8, style), (1.0, sharp))
    found = making.dense(lh.load(saved.path))
    optimum = 0.0
    for delta in expected.values():
        optimum += float(torch.linalg.svdvals(delta.flatten(1))[2:].square().sum())
    size = sum(float(delta.square().sum()) for delta in expected.values())
    assert making.apart(expected, found) == pytest.approx((optimum / size) ** 0.5, rel=1e-3)


@pytest.mark.usefixtures("folder")
def test_operands_are_made_orthogonal_to_one_of_them_or_to_another_adapter() -> None:
    style, sharp = deltas()
    shared = STYLE[0]
    share = float((style[shared] * sharp[shared]).sum() / sharp[shared].square().sum())
    apart = {**style, shared: style[shared] - share * sharp[shared]}
    made = combine("0.8*style.safetensors + 1.0*sharp.safetensors", orthogonal_to="sharp.safetensors")
    assert making.apart(making.mixture((0.8, apart), (1.0, sharp)), making.dense(made)) < 1e-7
    plain = combine("0.8*style.safetensors + 1.0*sharp.safetensors")
    assert {name: layer.rank for name, layer in made.layers.items()} == {
        name: layer.rank for name, layer in plain.layers.items()
    }
    assert expression(made.recipe) == "0.8*orthogonal(style, sharp) + 1*sharp"
    alone = combine("2*style.safetensors", orthogonal_to="./sharp.safetensors")
    assert making.apart(making.mixture((2.0, apart)), making.dense(alone)) < 1e-7
    spelled = combine("style.safetensors + sharp.safetensors", orthogonal_to="./sharp.safetensors")
    assert expression(spelled.recipe) == "1*orthogonal(style, sharp) + 1*sharp"
    with pytest.raises(UsageError, match="not orthogonal to itself"):
        combine("2*sharp.safetensors", orthogonal_to="./sharp.safetensors")


@pytest.mark.usefixtures("folder")
def test_layers_are_weighed_before_operands_are_made_orthogonal() -> None:
    style, sharp = deltas()
    shared = STYLE[0]
    weighed = {name: (0.5 if "attn1" in name else 1.0) * delta for name, delta in style.items()}
    share = float((weighed[shared] * sharp[shared]).sum() / sharp[shared].square().sum())
    made = combine(
        "style.safetensors + sharp.safetensors",
        weights=[("style.safetensors", "attn1", 0.5), ("sharp.safetensors", "attn1", 0.0)],
        orthogonal_to="sharp.safetensors",
    )
    expected = making.mixture(
        (1.0, {**weighed, shared: weighed[shared] - share * sharp[shared]}), (1.0, {**sharp, shared: 0 * sharp[shared]})
    )
    assert making.apart(expected, making.dense(made)) < 1e-7


@pytest.mark.usefixtures("folder")
def test_normalise_keeps_the_norm_of_the_first_operand_whatever_its_weight() -> None:
    style, sharp = deltas()
    expected = making.mixture((0.3, style), (1.0, sharp))
    length, wanted = (sum(float(d.square().sum()) for d in deltas.values()) ** 0.5 for deltas in (expected, style))
    made = combine("0.3*style.safetensors + sharp.safetensors", normalise=True)
    assert making.apart(making.mixture((wanted / length, expected)), making.dense(made)) < 1e-7
    assert lh.norm(made) == pytest.approx(lh.norm(load("style.safetensors")), rel=1e-9)
    with pytest.raises(UsageError, match="is zero: no factor"):
        combine("style.safetensors - style.safetensors", normalise=True)


@pytest.mark.usefixtures("folder")
def test_a_method_merges_the_weighted_operands() -> None:
    how = {"density": 1.0, "divide": "none"}
    weights = [("style.safetensors", "conv_in", 0.0)]
    text = "0.8*style.safetensors - 2*sharp.safetensors"
    made = combine(text, method="ties", settings=how, rule=lh.fixed(64), weights=weights)
    style, sharp = deltas()
    style["unet.conv_in"] = 0 * style["unet.conv_in"]
    expected: dict[str, torch.Tensor] = {}
    for name in style.keys() | sharp.keys():  # elected by the sum, added where the sign agrees
        values = [weight * parts[name] for weight, parts in ((0.8, style), (-2.0, sharp)) if name in parts]
        sign = sum(values[1:], start=values[0]).sign()
        expected[name] = sum((value.where(value.sign() == sign, 0.0) for value in values), torch.zeros_like(values[0]))
    kept = expected.copy()
    for name, delta in expected.items():
        u, sigma, vh = torch.linalg.svd(delta.flatten(1), full_matrices=False)
        kept[name] = ((u[:, :64] * sigma[:64]) @ vh[:64]).reshape(delta.shape)
    assert isinstance(made, lh.Truncated)
    left_out = making.apart(expected, kept)
    assert made.relative_error == pytest.approx(left_out, rel=0.02)  # a randomised SVD: near the optimum
    assert making.apart(expected, making.dense(made)) == pytest.approx(made.relative_error, rel=1e-3)
    with pytest.raises(UsageError, match="not low-rank"):
        combine(text, method="ties")
    with pytest.raises(UsageError, match="no merge method is called 'tie'"):
        combine("nothing.safetensors", method="tie")
    with pytest.raises(UsageError, match="addition has no settings"):
        combine("nothing.safetensors", settings={"density": 0.5})


@pytest.mark.usefixtures("folder")
def test_a_file_under_two_names_is_one_adapter_for_a_method_too() -> None:
    twice = combine("style.safetensors + ./style.safetensors", method="iso_c", rule=lh.fixed(4))
    assert expression(twice.recipe) == "merge(style, method=iso_c, weights=[2.0], rule=fixed(4))"
