"""A distilled set's two files: written whole, and read with every check that they are what they say they are."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from ddray.distillation.evaluate import Score
from ddray.distillation.manifest import FORMAT, Manifest, checksum, seal
from ddray.errors import RequestError
from ddray.files import storable_name

TENSORS, MANIFEST = "distilled.safetensors", "manifest.json"
_STAMPING = f".{MANIFEST}-"


def write(directory: Path, tensors: Mapping[str, Tensor], manifest: Manifest) -> Path:
    """Write `distilled.safetensors` and `manifest.json` into `directory`, whole or not at all.

    A set that is there already is moved aside until the new one is in its place, then removed.

    Raises:
        RequestError: the directory exists and holds something other than a distilled set, or cannot be written.

    """
    refuse_foreign(directory)
    data = write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    try:
        _write(directory.resolve(), data, manifest)  # a link stays, and what it points to is replaced
    except OSError as error:
        raise RequestError("--out", str(directory), f"a set could not be saved there: {error.strerror}") from error
    return directory


def _write(directory: Path, data: bytes, manifest: Manifest) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=directory.parent))
    try:
        (temporary / TENSORS).write_bytes(data)
        (temporary / MANIFEST).write_text(_text(seal(manifest, data)), encoding="utf-8")
        temporary.chmod(0o755)
        _put(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put(new: Path, directory: Path) -> None:
    """Rename `new` to `directory`; what was there is deleted once that is done, and comes back if it fails."""
    if not directory.exists():
        try:
            new.rename(directory)
            return
        except OSError:
            if not directory.exists():  # else another process has put one there meanwhile
                raise
    holder = Path(tempfile.mkdtemp(prefix=".old-", dir=directory.parent))
    old = holder / directory.name
    try:
        directory.rename(old)
    except OSError:
        holder.rmdir()
        raise
    try:
        new.rename(directory)
    except BaseException:
        old.rename(directory)
        holder.rmdir()
        raise
    shutil.rmtree(holder)


def read(directory: Path) -> tuple[dict[str, Tensor], Manifest]:
    """The tensors and the manifest in a directory that `write` made.

    Raises:
        RequestError: not a distilled set; truncated, altered, or of a newer format.

    """
    try:
        data = (directory / TENSORS).read_bytes()
        text = (directory / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("set", str(directory), f"not a distilled set: {_reason(error)}") from None
    fields = _fields(directory, text)
    try:
        whole = fields.get("sha256") == checksum(fields, data)
    except ValueError:  # a number that is not finite, which no manifest of ours has
        whole = False
    if not whole:
        raise RequestError("set", str(directory), "its checksum does not match: the files were truncated or altered")
    try:
        manifest = Manifest.model_validate(fields)
        tensors = read_tensors(data)
        _check_tensors(manifest, tensors)
    except (ValidationError, SafetensorError, KeyError, ValueError) as error:
        raise RequestError("set", str(directory), f"not a distilled set: {_reason(error)}") from None
    return tensors, manifest


def stamp(directory: Path, scores: Sequence[Score]) -> None:
    """Record further scores in the manifest of a saved set; the tensors stay.

    The manifest is read now, not when scoring began, so that a look recorded meanwhile is not lost.
    """
    _, manifest = read(directory)
    data = (directory / TENSORS).read_bytes()
    recorded = manifest.model_copy(update={"scores": (*manifest.scores, *scores)})
    handle, name = tempfile.mkstemp(prefix=_STAMPING, dir=directory)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(_text(seal(recorded, data)))
    Path(name).chmod(0o644)
    Path(name).replace(directory / MANIFEST)


def _fields(directory: Path, text: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError("set", str(directory), f"its manifest is damaged: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise RequestError("set", str(directory), "its manifest has no format number")
    if fields["format"] > FORMAT:
        raise RequestError("set", str(directory), f"format {fields['format']} is newer than {FORMAT}: update ddray")
    return fields


def _check_tensors(manifest: Manifest, tensors: dict[str, Tensor]) -> None:
    inputs, labels, rates = tensors["inputs"], tensors["labels"], tensors["rates"]
    steps, samples = len(inputs), len(manifest.sample_classes)
    expected = [
        (inputs, (steps, samples, *manifest.dataset.input_shape)),
        (labels, (steps, samples, manifest.network.outputs)),
        (rates, (len(manifest.step_order),)),
    ]
    if manifest.text is not None:
        expected.append((tensors["vectors"], (len(manifest.text.words), manifest.dataset.input_shape[1])))
    if any(tuple(tensor.shape) != shape for tensor, shape in expected) or max(manifest.step_order) >= steps:
        raise ValueError("tensors and manifest disagree about shapes")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ValueError("a tensor holds numbers that are not finite")


def refuse_foreign(directory: Path) -> None:
    """Refuse to save where anything other than a distilled set lies: saving would delete it."""
    storable_name(directory, "--out")
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise RequestError("--out", str(directory), "it exists and is not a distilled set; name a new directory")
    names = {path.name for path in directory.iterdir() if not path.name.startswith(_STAMPING)}
    if names and MANIFEST not in names:
        raise RequestError("--out", str(directory), "it exists and is not a distilled set; name a new directory")
    if foreign := sorted(names - {TENSORS, MANIFEST}):
        raise RequestError("--out", str(directory), f"it holds {foreign[0]} beside a set; name a new directory")


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
