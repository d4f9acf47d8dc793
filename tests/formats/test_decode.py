"""Every kind of module against its dense definition in float64, written out as LyCORIS and PEFT define it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorahub.errors import FileFormatError, NotAdditiveError, VerificationError
from lorahub.formats.decode import Decoded, decode
from lorahub.formats.kinds import NOT_ADDITIVE
from lorahub.formats.layout import parse

from .samples import INN, OUT, RANK, Shapes, kohya, loha, lokr, peft, random

R, K = RANK, (3, 3)
TUCKER = {"m.lora_down.weight": (R, INN, 1, 1), "m.lora_up.weight": (OUT, R, 1, 1), "m.lora_mid.weight": (R, R, *K)}
LOHA_TUCKER = {
    **{f"m.hada_w{n}_{x}": (R, size) for n in (1, 2) for x, size in (("a", OUT), ("b", INN))},
    **{f"m.hada_t{n}": (R, R, *K) for n in (1, 2)},
}
ALPHA: Shapes = {"m.alpha": ()}


def decoded(tensors: dict[str, Tensor], **settings: object) -> Decoded:
    layout = parse({key: tuple(tensor.shape) for key, tensor in tensors.items()}, **settings)  # type: ignore[arg-type]
    assert not layout.unknown
    (module,) = layout.modules
    return decode(module, tensors)


def product(result: Decoded) -> Tensor:
    """ΔW [out, in * kernel] in float64."""
    return sum((scale * up.double() @ down.double() for up, down, scale in result.factors), torch.tensor(0.0))


def flat(tensor: Tensor) -> Tensor:
    return tensor.double().flatten(1)


def lora_dense(t: dict[str, Tensor]) -> Tensor:
    up, down = t["m.lora_up.weight"].double(), t["m.lora_down.weight"].double()
    return (flat(up) @ flat(down)).reshape(up.shape[0], *down.shape[1:])


def tucker_dense(t: dict[str, Tensor]) -> Tensor:
    mid, up, down = (t[f"m.lora_{x}.weight"].double() for x in ("mid", "up", "down"))
    return torch.einsum("ijkl,ip,jr->prkl", mid, up.reshape(OUT, R).T, down.reshape(R, INN))


def loha_dense(t: dict[str, Tensor]) -> Tensor:
    return (t["m.hada_w1_a"].double() @ t["m.hada_w1_b"].double()) * (
        t["m.hada_w2_a"].double() @ t["m.hada_w2_b"].double()
    )


def loha_tucker_dense(t: dict[str, Tensor]) -> Tensor:
    first, second = (
        torch.einsum("ijkl,jr,ip->prkl", *(t[f"m.hada_{x}"].double() for x in (f"t{n}", f"w{n}_b", f"w{n}_a")))
        for n in (1, 2)
    )
    return first * second


def lokr_dense(t: dict[str, Tensor]) -> Tensor:
    parts = {key.removeprefix("m.lokr_"): tensor.double() for key, tensor in t.items()}
    w1 = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    if "w2" in parts:
        w2 = parts["w2"]
    elif "t2" in parts:
        w2 = torch.einsum("ijkl,ip,jr->prkl", parts["t2"], parts["w2_a"], parts["w2_b"])
    else:
        w2 = parts["w2_a"] @ parts["w2_b"].flatten(1)
        w2 = w2.reshape(w2.shape[0], *parts["w2_b"].shape[1:])
    while w1.ndim < w2.ndim:
        w1 = w1.unsqueeze(-1)
    return torch.kron(w1, w2.contiguous())


W1, W2 = {"m.lokr_w1": (2, 3)}, {"m.lokr_w2": (6, 5)}
W1_LOW = {"m.lokr_w1_a": (6, 2), "m.lokr_w1_b": (2, 5)}
W2_LOW = {"m.lokr_w2_a": (6, 2), "m.lokr_w2_b": (2, 5)}
DENSE = {
    "lora": (kohya("m"), lora_dense, R),
    "lora conv": (kohya("m", kernel=K), lora_dense, R),
    "lora 1x1": (kohya("m", kernel=(1, 1)), lora_dense, R),
    "tucker": (TUCKER | ALPHA, tucker_dense, R),
    "loha": (loha("m", 2), loha_dense, 2),
    "loha of high rank": (loha("m", 7), loha_dense, 7),
    "loha tucker": (LOHA_TUCKER | ALPHA, loha_tucker_dense, R),
    "lokr": (lokr("m"), lokr_dense, R),
    "lokr both factored": (W1_LOW | W2_LOW | ALPHA, lokr_dense, 2),
    "lokr first factored": (W1_LOW | W2 | ALPHA, lokr_dense, 2),
    "lokr whole": (W1 | W2 | ALPHA, lokr_dense, None),
    "lokr factored above its size": (W1 | {"m.lokr_w2_a": (6, 9), "m.lokr_w2_b": (9, 5)} | ALPHA, lokr_dense, 9),
    "lokr conv whole": (W1 | {"m.lokr_w2": (6, 5, *K)} | ALPHA, lokr_dense, None),
    "lokr conv factored": (W1 | {"m.lokr_w2_a": (6, 2), "m.lokr_w2_b": (2, 5, *K)} | ALPHA, lokr_dense, 2),
    "lokr conv tucker": (
        W1 | {"m.lokr_w2_a": (2, 6), "m.lokr_w2_b": (2, 5), "m.lokr_t2": (2, 2, *K)} | ALPHA,
        lokr_dense,
        2,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shapes", "dense", "rank"), DENSE.values(), ids=DENSE)
def test_factors_multiply_to_the_dense_definition(
    shapes: Shapes, dense: object, rank: int | None, dtype: torch.dtype
) -> None:
    tensors = random(shapes, dtype, alpha=2.0)
    expected = dense(tensors) * (2.0 / rank if rank else 1.0)  # type: ignore[operator]
    result = decoded(tensors)
    error = (product(result) - expected.flatten(1)).norm() / expected.norm()
    assert error < (1e-14 if dtype == torch.float64 else 2e-7)
    assert result.kernel == tuple(expected.shape[2:]) or not result.kernel
    assert result.weight_offset is None
    assert result.bias_offset is None


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("loha", 4),
        ("loha of high rank", 10),
        ("lokr", 2 * 4),
        ("lokr both factored", 4),
        ("lokr whole", 10),
        ("tucker", R),
    ],
)
def test_the_cheapest_exact_rank_is_taken(name: str, rank: int) -> None:
    ((up, down, _),) = decoded(random(DENSE[name][0])).factors
    assert (up.shape[1], down.shape[0]) == (rank, rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_plain_lora_is_handed_on_without_a_copy(dtype: torch.dtype) -> None:
    tensors = random(kohya("m", kernel=K), dtype)
    ((up, down, _),) = decoded(tensors).factors
    assert up.data_ptr() == tensors["m.lora_up.weight"].data_ptr()
    assert down.data_ptr() == tensors["m.lora_down.weight"].data_ptr()
    assert (up.dtype, down.dtype, up.shape, down.shape) == (dtype, dtype, (OUT, R), (R, INN * 9))


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor(2), torch.tensor([2.0]), torch.tensor(2.0, dtype=torch.bfloat16), torch.tensor([[2]])],
    ids=["int64", "[1]", "bf16", "[1, 1]"],
)
def test_alpha_may_be_an_integer_or_have_a_dimension(alpha: Tensor) -> None:
    assert decoded(random(kohya("m")) | {"m.alpha": alpha}).factors[0][2] == 2 / R


def test_alpha_zero_is_off() -> None:
    result = decoded(random(kohya("m"), alpha=0.0))
    assert result.factors[0][2] == 0.0
    assert not product(result).any()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), float("-inf")])
def test_alpha_must_be_finite(alpha: float) -> None:
    with pytest.raises(VerificationError, match=r"m\.alpha: expected a finite alpha"):
        decoded(random(kohya("m"), alpha=alpha))


@pytest.mark.parametrize("alpha", [float("inf"), float("nan"), 1e10, 0.0])
def test_alpha_of_a_whole_lokr_is_a_sentinel(alpha: float) -> None:
    assert decoded(random(W1 | W2 | ALPHA, alpha=alpha)).factors[0][2] == 1.0


def test_without_alpha_the_scale_is_one() -> None:
    assert decoded(random(peft("unet.m"))).factors[0][2] == 1.0


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 5, 3, 3), (6, 1, 1, 1)])
def test_full_differences_are_factored_on_the_smaller_side(shape: tuple[int, ...]) -> None:
    tensors = random({"m.diff": shape, "m.diff_b": (shape[0],)}, torch.float16)
    result = decoded(tensors)
    ((up, down, scale),) = result.factors
    assert torch.equal(product(result), flat(tensors["m.diff"]))
    assert (up.shape[1], scale, result.kernel) == (min(shape[0], flat(tensors["m.diff"]).shape[1]), 1.0, shape[2:])
    assert result.bias_offset is tensors["m.diff_b"]
    assert tensors["m.diff"].data_ptr() in (up.data_ptr(), down.data_ptr())


@pytest.mark.parametrize("names", [("w_norm", "b_norm"), ("diff", "diff_b")])
def test_norms_are_vectors(names: tuple[str, str]) -> None:
    tensors = random({f"m.{names[0]}": (7,), f"m.{names[1]}": (7,)})
    result = decoded(tensors)
    assert result.factors == ()
    assert result.weight_offset is tensors[f"m.{names[0]}"]
    assert result.bias_offset is tensors[f"m.{names[1]}"]


def test_a_bias_difference_stands_beside_a_lora_unscaled() -> None:
    tensors = random(kohya("m") | {"m.diff_b": (OUT,)})
    assert decoded(tensors).bias_offset is tensors["m.diff_b"]


def test_the_bias_of_lora_b_is_scaled_with_the_lora() -> None:
    tensors = random(peft("unet.m") | {"unet.m.lora_B.bias": (OUT,)})
    result = decoded(tensors, config={"r": R, "lora_alpha": 2, "lora_bias": True})
    assert result.bias_offset is not None
    torch.testing.assert_close(result.bias_offset, tensors["unet.m.lora_B.bias"] * 2 / R)


def test_embeddings_are_transposed() -> None:
    tensors = random({"m.lora_embedding_A": (R, 50), "m.lora_embedding_B": (INN, R)})
    expected = (tensors["m.lora_embedding_B"].double() @ tensors["m.lora_embedding_A"].double()).T
    torch.testing.assert_close(product(decoded(tensors)), expected)


def test_the_sparse_residual_is_added() -> None:
    dense = torch.zeros(OUT, INN, dtype=torch.float16)
    dense[3, 4], dense[11, 0] = 1.5, -2.0
    sparse = dense.to_sparse().coalesce()
    tensors = random(kohya("m"), torch.float16, alpha=float(R)) | {
        "m.bias_indices": sparse.indices().to(torch.int16),
        "m.bias_values": sparse.values(),
        "m.bias_size": torch.tensor(dense.shape).to(torch.int16),
    }
    expected = lora_dense(tensors) + dense.double()
    torch.testing.assert_close(product(decoded(tensors)), expected)
    for broken in ({"m.bias_size": torch.tensor([OUT, 99])}, {"m.bias_indices": torch.tensor([[3, 12], [4, 0]])}):
        with pytest.raises(FileFormatError, match=r"m\.bias_size: expected \[12, 10\]"):
            decoded(tensors | broken)


NOT_VECTORS = {
    "dora": {**kohya("m"), "m.dora_scale": (1, INN)},
    "oft": {"m.oft_blocks": (4, 8, 8), "m.alpha": ()},
    "boft": {"m.oft_blocks": (2, 4, 8, 8)},
    "glora": {f"m.{x}.weight": (4, 4) for x in ("a1", "a2", "b1", "b2")},
    "ia3": {"m.weight": (OUT,), "m.on_input": ()},
    "set": {"m.set_weight": (OUT, INN)},
    "reshape": {**peft("m"), "m.reshape_weight": (2,)},
}


@pytest.mark.parametrize("kind", NOT_VECTORS)
def test_what_is_no_vector_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(NotAdditiveError, match=r"^m: ") as caught:
        decoded(random(NOT_VECTORS[kind]))
    assert NOT_ADDITIVE[kind] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_a_configuration_are_refused_as_well() -> None:
    with pytest.raises(NotAdditiveError, match=r"base_model\.model\.q: PiSSA"):
        decoded(random(peft("base_model.model.q")), config={"r": R, "init_lora_weights": "pissa"})
