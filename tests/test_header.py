"""Headers: valid files are read as safetensors itself reads them, everything else is refused in one short line."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lorahub import header
from lorahub.errors import FileFormatError, NotFoundError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
EXACT_NUMBERS = [name for name in DTYPES if name not in ("BOOL", "C64") and not name.startswith("F8")]


def entry(start: int, stop: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def file_of(head: bytes | str | dict[str, Any], data: bytes = b"") -> bytes:
    raw = json.dumps(head).encode() if isinstance(head, dict) else head.encode() if isinstance(head, str) else head
    return len(raw).to_bytes(8, "little") + raw + data


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "file.safetensors"
        path.write_bytes(content)
        return path

    return write


def refusal(path: Path) -> str:
    """The message with which the file is refused: one short line that names it, and soon."""
    began = time.monotonic()
    with pytest.raises(FileFormatError) as caught:
        header.read(path)
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000 + len(str(path))
    assert str(path) in message
    return message


def test_files_of_all_dtypes_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    tensors = {
        f"{name}.{shape}": torch.zeros(shape, dtype=torch.uint8 if dtype.is_floating_point else dtype).to(dtype)
        for name, dtype in DTYPES.items()
        for shape in ((), (0,), (1,), (3, 5), (2, 0, 4), (2, 3, 1, 1))
    }
    path = tmp_path / "all.safetensors"
    save_file(tensors, path, metadata={"ss_note": 'a "dtype" in quotes', "größe": "ü", "\\u0041": "\\"})
    found = header.read(path)
    with safe_open(path, framework="pt") as reader:
        assert found.shapes == {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
        assert {name: info.dtype for name, info in found.tensors.items()} == {
            name: reader.get_slice(name).get_dtype() for name in tensors
        }
        assert found.metadata == reader.metadata()
    assert found.size == path.stat().st_size
    assert found.data_start + max(info.stop for info in found.tensors.values()) == found.size


def test_a_file_without_tensors_or_metadata_is_valid(put: Callable[[bytes], Path]) -> None:
    found = header.read(put(file_of("{}")))
    assert (found.tensors, found.metadata, found.data_start, found.size) == ({}, {}, 10, 10)


def test_padding_escapes_and_awkward_names_are_valid(put: Callable[[bytes], Path]) -> None:
    names = {
        "dtype": entry(0, 1),
        "shape": entry(1, 2),
        "data_offsets": entry(2, 3),
        "\u0041": entry(3, 4),
        "a\nb": entry(4, 5),
    }
    text = json.dumps({"__metadata__": {"dtype": "shape"}, **names}).replace('"A"', r'"\u0041"') + "   "
    assert list(header.read(put(file_of(text, b"12345"))).tensors) == list(names)


@pytest.mark.parametrize("name", EXACT_NUMBERS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scalars_of_every_number_type(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "alpha.safetensors"
    save_file({"before": torch.zeros(3), "alpha": torch.full(shape, 3, dtype=torch.uint8).to(DTYPES[name])}, path)
    assert header.read_scalar(path, header.read(path), "alpha") == 3.0


def test_scalars_keep_their_sign_and_fraction(tmp_path: Path) -> None:
    path = tmp_path / "alpha.safetensors"
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        save_file({"alpha": torch.tensor(-0.3, dtype=dtype)}, path)
        assert header.read_scalar(path, header.read(path), "alpha") == float(torch.tensor(-0.3, dtype=dtype))


def test_what_is_no_single_number_is_no_scalar(tmp_path: Path) -> None:
    path = tmp_path / "alpha.safetensors"
    save_file({"two": torch.ones(2), "none": torch.ones(0), "flag": torch.ones(1, dtype=torch.bool)}, path)
    found = header.read(path)
    for name in ("two", "none", "flag"):
        with pytest.raises(FileFormatError, match=name):
            header.read_scalar(path, found, name)


def test_the_data_hash_ignores_the_metadata(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {"a": torch.arange(300_000.0)}
    hashes = set()
    for metadata in ({"one": "1"}, {"another": "much longer"}):
        save_file(tensors, path, metadata=metadata)
        hashes.add(header.data_sha256(path, header.read(path)))
    assert hashes == {hashlib.sha256(tensors["a"].numpy().tobytes()).hexdigest()}


TWO = {"a": entry(0, 4), "b": entry(4, 8)}
FOUR = json.dumps(entry(0, 4))
ESCAPED = FOUR.replace("dtype", r"d\u0074ype")
DEEP = "[" * 200_000
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes is too short"),
    "eight zero bytes": (bytes(8), "no JSON header follows"),
    "header length zero": (bytes(8) + b"{}", "not valid JSON"),
    "header length 2^62": ((2**62).to_bytes(8, "little") + b"{}", "claims 4611686018427387904 bytes, more than"),
    "header beyond the end": ((1000).to_bytes(8, "little") + b'{"a":', "truncated: header claims 1000"),
    "header cut": (file_of(json.dumps(TWO)[:-5]), "not valid JSON"),
    "data cut": (file_of(TWO, bytes(7)), "truncated: tensors need 8 bytes, the file holds 7"),
    "no data": (file_of(TWO), "truncated"),
    "trailing bytes": (file_of(TWO, bytes(9)), "1 bytes follow the last tensor"),
    "deep arrays": (file_of('{"a":' + DEEP), "nested too deeply"),
    "deep objects": (file_of('{"a":' * 200_000), "nested too deeply"),
    "closed deep arrays": (file_of('{"a":' + DEEP + DEEP.replace("[", "]") + "}"), "nested too deeply"),
    "duplicate tensors": (file_of(f'{{"a":{FOUR},"a":{FOUR}}}', bytes(4)), "duplicate keys in the header: 'a'"),
    "duplicate tensors, one escaped": (file_of(f'{{"a":{FOUR},"\\u0061":{ESCAPED}}}', bytes(4)), "duplicate keys"),
    "duplicate dtype": (file_of(f'{{"a":{FOUR[:-1]},"dtype":"I8"}}}}', bytes(4)), "duplicate keys in the header: 'dtype'"),
    "duplicate shape": (file_of(f'{{"a":{FOUR[:-1]},"shape":[4]}}}}', bytes(4)), "'shape'"),
    "duplicate metadata": (file_of('{"__metadata__":{},"__metadata__":{}}'), "'__metadata__'"),
    "overlap": (file_of({"a": entry(0, 4), "b": entry(3, 8)}, bytes(8)), "'b' overlaps"),
    "the same bytes twice": (file_of({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "'b' overlaps"),
    "gap": (file_of({"a": entry(0, 4), "b": entry(5, 8)}, bytes(8)), "'b' leaves a gap"),
    "gap at the start": (file_of({"a": entry(1, 4)}, bytes(4)), "'a' leaves a gap"),
    "shape times dtype too small": (file_of({"a": entry(0, 8, "F32", [1])}, bytes(8)), "does not fill its 8 bytes"),
    "shape times dtype too large": (file_of({"a": entry(0, 8, "F32", [3])}, bytes(8)), "does not fill its 8 bytes"),
    "huge shape": (file_of({"a": entry(0, 8, "U8", [2**62, 2**62])}, bytes(8)), "does not fill"),
    "shape that wraps to the size": (file_of({"a": entry(0, 0, "U8", [2**32, 2**32])}), "does not fill"),
    "shape beyond 64 bits": (file_of({"a": entry(0, 0, "U8", [0, 10**30])}), "not whole numbers"),
    "a million dimensions": (file_of({"a": entry(0, 8, "U8", [999_999_999_999] * 800_000)}, bytes(8)), "at most 64 lengths"),
    "number of 5000 digits": (file_of('{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}}' % ("9" * 5000)), "not valid JSON"),
    "negative shape": (file_of({"a": entry(0, 4, "U8", [-2, -2])}, bytes(4)), "not whole numbers"),
    "negative offsets": (file_of({"a": entry(-4, 0)}), "not whole numbers"),
    "reversed offsets": (file_of({"a": entry(4, 0, "U8", [4])}, bytes(4)), "does not fill"),
    "fractional shape": (file_of({"a": entry(0, 4, "U8", [4.0])}, bytes(4)), "not whole numbers"),
    "true for one": (file_of({"a": entry(0, 1, "U8", [True])}, bytes(1)), "not whole numbers"),
    "NaN": (file_of('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,Infinity]}}'), "not whole numbers"),
    "shape is no list": (file_of({"a": entry(0, 1, "U8", "")}, bytes(1)), "needs a shape"),
    "three offsets": (file_of({"a": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, bytes(4)), "two data_offsets"),
    "missing dtype": (file_of({"a": {"shape": [4], "data_offsets": [0, 4]}}, bytes(4)), "known dtype"),
    "unknown dtype": (file_of({"a": entry(0, 4, "F12")}, bytes(4)), "known dtype"),
    "dtype is a list": (file_of({"a": {**entry(0, 4), "dtype": ["U8"]}}, bytes(4)), "known dtype"),
    "half a byte": (file_of({"a": entry(0, 1, "F4", [1])}, bytes(1)), "does not fill"),
    "tensor is a number": (file_of({"a": 3}), "known dtype"),
    "tensor is null": (file_of({"a": None}), "known dtype"),
    "metadata is a list": (file_of({"__metadata__": []}), "must map strings to strings"),
    "metadata is null": (file_of({"__metadata__": None}), "must map strings to strings"),
    "metadata holds a number": (file_of({"__metadata__": {"a": 1}}), "must map strings to strings"),
    "header is a list": (file_of(b"[]"), "no JSON header"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not valid JSON: 'utf-8'"),
    "UTF-16": (file_of("{}".encode("utf-16-le")), "not valid JSON"),
    "surrogates as UTF-8": (file_of(b'{"__metadata__":{"\xed\xa0\x80":"a"}}'), "not valid JSON"),
    "names with line breaks": (file_of(f'{{"a\\nb":{FOUR},"a\\nb":{FOUR}}}', bytes(4)), r"'a\nb'"),
    "a megabyte of name": (file_of({"a" * 10**6: entry(0, 4, "F12")}, bytes(4)), "aaa..."),
    "a lone surrogate": (file_of('{"\\ud800":3}'), r"'\ud800'"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "pickle": (pickle.dumps({"state_dict": [1.0] * 20}), "Python pickle"),
    "text": (b"just some text, nothing more", "no JSON header"),
}  # fmt: skip

ACCEPTED_BY_SAFETENSORS = (
    "duplicate tensors",
    "duplicate tensors, one escaped",
    "names with line breaks",
    "metadata is null",
)
"""Where lorahub is stricter: safetensors' own reader keeps one of equal keys in silence."""


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_not_well_formed_is_refused_in_one_line(case: str, put: Callable[[bytes], Path]) -> None:
    content, expected = HOSTILE[case]
    path = put(content)
    assert expected in refusal(path)
    if case not in ACCEPTED_BY_SAFETENSORS:
        with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
            pass


def test_zip_archives_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    assert "ZIP archive" in refusal(path)
    torch.save({"a": torch.ones(2)}, path)
    assert "ZIP archive" in refusal(path)


@pytest.mark.parametrize("depth", range(950, 1000, 7))
def test_nesting_near_the_limit_of_the_interpreter(depth: int, put: Callable[[bytes], Path]) -> None:
    refusal(put(file_of('{"a":' + "[" * depth + "]" * depth + "}")))


def test_a_million_tensors_are_refused_before_they_are_parsed(put: Callable[[bytes], Path]) -> None:
    one = '"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    path = put(file_of("{" + "".join(one % index for index in range(10**6))[:-1] + "}"))
    began = time.monotonic()
    assert "more than the 16777216 allowed" in refusal(path)
    assert time.monotonic() - began < 0.5


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        assert "not a regular file" in refusal(path)
    with pytest.raises(NotFoundError, match="no such file"):
        header.read(tmp_path / "missing.safetensors")
    assert "cannot read" in refusal(tmp_path / ("a" * 300))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed, removed or inserted: nothing but FileFormatError ever comes out."""
    content = bytearray(file_of({"__metadata__": {"k": "v"}, "a": entry(0, 4), "b": entry(4, 8, "F16", [2])}, bytes(8)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        replacement = data.draw(st.binary(max_size=3))
        content[at : at + data.draw(st.integers(0, 3))] = replacement
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        found = header.read(path)
    except FileFormatError:
        return
    with safe_open(path, framework="pt") as reader:  # what we accept, safetensors accepts
        assert set(reader.keys()) == set(found.tensors)


class Knot:
    """Garbage that only the cyclic collector finds."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_made_while_the_collector_pauses_is_collected_later() -> None:
    with header.collector_paused():
        assert not gc.isenabled()
        knot = Knot()
        untied = weakref.ref(knot)
        del knot
    assert gc.isenabled()
    assert any(found is untied() for found in gc.get_objects(generation=2))
    gc.collect()
    assert untied() is None


def test_objects_that_somebody_froze_stay_frozen() -> None:
    frozen = Knot()
    gc.freeze()
    try:
        with header.collector_paused():
            pass
        assert not any(found is frozen for found in gc.get_objects())  # which does not list what is frozen
    finally:
        gc.unfreeze()
    assert any(found is frozen for found in gc.get_objects())


def test_reading_headers_needs_no_torch() -> None:
    code = "import sys, lorahub.header; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'safetensors')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
