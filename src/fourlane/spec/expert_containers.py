"""Files that hold arrays under names: JSON, npz, npy and safetensors, told apart by what is in them.

Not for what the arrays mean (`spec.expert_files`). NumPy, and safetensors where it is needed, are imported late.
"""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fourlane.errors import EnvironmentMissing, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["SUFFIXES", "read_container", "write_container"]

SUFFIXES = (".json", ".npz", ".safetensors")
_PLAIN = (bool, int, float, str)


def read_container(path: Path) -> Any:
    """Return what a file holds: a tree of dicts with lists, numbers and arrays as leaves; a sole array by itself.

    A name with slashes, such as "decode/load_WLE" in an npz, stands for dicts in dicts.

    Raises:
        SpecError: the file cannot be read, or is none of these.
        EnvironmentMissing: it needs safetensors, which is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: expected a readable file: {error.strerror}") from error
    if data[:2] == b"PK":
        return _from_npz(path, data)
    if data[:6] == b"\x93NUMPY":
        return _loaded(path, data)
    if data[:32].lstrip()[:1] in (b"{", b"["):
        return _from_json(path, data)
    if len(data) > 8 and data[8:9] == b"{":
        return _from_safetensors(path, data)
    raise SpecError(
        f"{path}: expected JSON, npz, npy or safetensors, got {len(data)} bytes that begin with {data[:8]!r}"
    )


def write_container(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts with arrays, numbers and texts as leaves; the suffix says the format.

    Raises:
        SpecError: an unknown suffix, or the file cannot be written.
        EnvironmentMissing: it needs safetensors, which is not installed.
    """
    if path.suffix == ".json":
        data = json.dumps(_listed(tree), separators=(",", ":")).encode() + b"\n"
    elif path.suffix == ".npz":
        data = _to_npz(tree)
    elif path.suffix == ".safetensors":
        data = _to_safetensors(path, tree)
    else:
        raise SpecError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, got {path.suffix!r}")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from error


def _from_json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not valid JSON: {error}") from error


def _from_npz(path: Path, data: bytes) -> Any:
    try:
        names = zipfile.ZipFile(BytesIO(data)).namelist()
    except zipfile.BadZipFile as error:
        raise SpecError(f"{path}: not a valid npz: {error}") from error
    if any(name.endswith("data.pkl") for name in names):
        raise SpecError(
            f"{path}: a file of torch.save, not an npz; read it with fourlane.integrations.sglang_files, "
            "or write what it holds as JSON, npz or safetensors"
        )
    with _loaded(path, data) as arrays:
        try:
            named = {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise SpecError(f"{path}: not a valid npz: {error}") from error
    if list(named) == ["arr_0"]:
        return named["arr_0"]
    return _nested({name: _scalar(array) for name, array in named.items()})


def _loaded(path: Path, data: bytes) -> Any:
    import numpy as np

    try:
        return np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SpecError(f"{path}: expected arrays as NumPy writes them: {error}") from error


def _from_safetensors(path: Path, data: bytes) -> Any:
    numpy_of = _safetensors(path)
    try:
        arrays = numpy_of.load(data)
        length = int.from_bytes(data[:8], "little")
        texts = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except Exception as error:
        raise SpecError(
            f"{path}: expected JSON, npz, npy or safetensors; as safetensors it is broken: {error}"
        ) from error
    return _nested({**{name: _read_text(text) for name, text in texts.items()}, **arrays})


def _to_npz(tree: Mapping[str, Any]) -> bytes:
    import numpy as np

    written = BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in _flat(tree).items()}
    np.savez_compressed(written, **arrays)
    return written.getvalue()


def _to_safetensors(path: Path, tree: Mapping[str, Any]) -> bytes:
    import numpy as np

    numpy_of = _safetensors(path)
    leaves = _flat(tree)
    texts = {name: json.dumps(leaf) for name, leaf in leaves.items() if isinstance(leaf, _PLAIN)}
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items() if name not in texts}
    return numpy_of.save(arrays, metadata=texts)


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise EnvironmentMissing(
            f'{path}: needs safetensors: pip install "fourlane[engine]" or safetensors alone, or use .npz or .json'
        ) from None
    return safetensors.numpy


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the leaves that are there by their names with slashes."""
    leaves: dict[str, Any] = {}
    for name, item in tree.items():
        if hasattr(item, "items"):
            leaves.update(_flat(item, f"{before}{name}/"))
        elif item is not None:
            leaves[f"{before}{name}"] = item
    return leaves


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return dicts in dicts for names with slashes; a name that is both a leaf and a dict stays as it is."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *outer, last = name.split("/")
        at = tree
        for part in outer:
            inner = at.setdefault(part, {})
            if not isinstance(inner, dict):
                tree[name] = leaf
                break
            at = inner
        else:
            at[last] = leaf
    return tree


def _listed(item: Any) -> Any:
    """Return a tree with lists for arrays, as JSON has them; what is None is left out."""
    if hasattr(item, "items"):
        return {name: _listed(inner) for name, inner in item.items() if inner is not None}
    return item.tolist() if hasattr(item, "tolist") else item


def _scalar(array: NDArray[Any]) -> Any:
    return array.item() if array.ndim == 0 else array


def _read_text(text: str) -> Any:
    """Return a value of safetensors' metadata: JSON where it is, as we write it; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
