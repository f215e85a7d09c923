"""Find models by path or name: the models folder and the built-in model.

A user gives a model as a model folder, a name, the folder of a Hugging Face checkpoint, a GGUF file, or a folder with
the GGUF files of one model. A name is looked up in the models folder first; "mini" is the built-in model and the
default. A text with a path separator is always a path. Nothing is converted or loaded here.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.errors import CheckpointError
from quant.gguf_names import find_gguf, gguf_models, parse_name, parts_of
from quant.presets import DEFAULT_PRESET, IMPORTED_PRESET, PRESETS
from quant.safe_files import SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, is_regular_file, read_json_object
from qwchat.errors import ModelError
from qwchat.text_files import expand_path

EMBEDDED_NAME = "mini"

_MAX_NAME_SHOWN = 200  # characters of a name in a message
_MAX_STEM_BYTES = 160  # of a conversion's name; suffixes and the names of temporary files come on top
_WEIGHT_FILES = (SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class LocatedModel:
    """A model that was found.

    Attributes:
        name: its name.
        path: its folder, or the first file of a GGUF model.
        converted: True for a model folder, False for a checkpoint or GGUF model that needs a conversion.
        embedded: True if it came with the program.
    """

    name: str
    path: Path
    converted: bool
    embedded: bool = False

    @property
    def kind(self) -> str:
        """What it is, for messages and lists."""
        return "model" if self.converted else "GGUF file" if self._is_gguf else "checkpoint"

    @property
    def files(self) -> list[Path]:
        """Files of a model that is not converted: its weights, and of a GGUF model nothing else."""
        return parts_of(self.path) if self._is_gguf else sorted(self.path.glob("*.safetensors"))

    @property
    def destination(self) -> Path:
        """Folder of its conversion: one that exists, or else the one that the default preset of its kind makes.

        Only `conversion_folder` is sure about a GGUF model, which may hold unquantised weights.
        """
        quantised = self._is_gguf or is_quantised(self.path)
        folders = [self.conversion_folder(quantised=quantised), self.conversion_folder(quantised=not quantised)]
        return next((folder for folder in folders if is_model(folder)), folders[0])

    def conversion_folder(self, *, quantised: bool) -> Path:
        """Return the folder for its conversion by the default preset, in the models folder.

        Args:
            quantised: whether its weights are quantised (`quant.sources.Source.quantised`).
        """
        return models_folder() / f"{model_name(self.path)}-{IMPORTED_PRESET if quantised else DEFAULT_PRESET}"

    @property
    def _is_gguf(self) -> bool:
        return not self.converted and is_gguf(self.path)


def source_checkout() -> Path | None:
    """Return the root of the source checkout that contains this package; None for an installed package."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "models").is_dir() else None


def models_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of converted models, which may not exist yet.

    It is QWCHAT_MODELS, `models` in a source checkout, or the platform's user data folder.
    """
    if environment.get("QWCHAT_MODELS"):
        return expand_path(environment["QWCHAT_MODELS"])
    checkout = source_checkout()
    if checkout is not None:
        return checkout / "models"
    import platformdirs

    return platformdirs.user_data_path("qwchat", appauthor=False) / "models"


def embedded_checkpoint() -> Path:
    """Return the checkpoint of the built-in model, in the installed package or in `models` of a source checkout."""
    installed = _PACKAGE / "embedded" / EMBEDDED_NAME
    checkout = source_checkout()
    return installed if checkout is None or installed.is_dir() else checkout / "models" / EMBEDDED_NAME


def is_model(folder: Path) -> bool:
    """Return True if `folder` looks like a converted model."""
    return is_regular_file(folder / "manifest.json")


def is_checkpoint(folder: Path) -> bool:
    """Return True if `folder` looks like a Hugging Face checkpoint."""
    return is_regular_file(folder / "config.json") and any(is_regular_file(folder / name) for name in _WEIGHT_FILES)


def is_quantised(folder: Path) -> bool:
    """Return whether the config.json of a checkpoint says that its weights are quantised."""
    from quant.families import MAX_CONFIG_BYTES

    try:
        return bool(read_json_object(folder / "config.json", ModelError, MAX_CONFIG_BYTES).get("quantization_config"))
    except ModelError:
        return False


def is_gguf(path: Path) -> bool:
    """Return True if `path` looks like a GGUF file."""
    return parse_name(path.name) is not None and is_regular_file(path)


def locate(model: str | None, environment: Mapping[str, str] = os.environ) -> LocatedModel:
    """Find the model that `model` names. None means QWCHAT_MODEL, or the built-in model.

    Raises:
        ModelError: there is no such model (the message names similar ones), or the path is neither a model nor a
            checkpoint nor a GGUF model, or a folder with several GGUF models.
    """
    name = environment.get("QWCHAT_MODEL") or EMBEDDED_NAME if model is None else model
    if not name:  # Such as an unset shell variable; as a path it would be the models folder itself.
        raise ModelError(_not_found_message(name))
    if not _is_path(name):
        found = _by_name(name)
        if found is not None:
            return found
    path = expand_path(name)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # Including invalid names and folders without access.
        raise ModelError(_not_found_message(name)) from None
    if stat.S_ISDIR(mode):
        return _by_path(path)
    if is_gguf(path):
        return _gguf_model(path)
    raise ModelError(f"{path} is not a GGUF file: give one, or the folder of a model or a checkpoint")


def converted_folder(model: str) -> Path:
    """Return the folder of the converted model `model`, a path or a name.

    Raises ModelError: there is no such model, or it has not been converted.
    """
    located = locate(model)
    if located.converted:
        return located.path
    if is_model(located.destination):
        return located.destination
    raise ModelError(
        f"{located.path} is a {located.kind} that has not been converted: run `qwchat convert {located.path}`, "
        "or call quant.convert, and load the result"
    )


def available() -> list[LocatedModel]:
    """Return the models in the models folder, its GGUF files and the built-in model, sorted by name."""
    found = {}
    folder = models_folder()
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and (is_model(path) or is_checkpoint(path)):
                found[path.name] = LocatedModel(path.name, path, is_model(path))
        for path in gguf_models(folder):
            if not path.name.startswith("."):
                found[path.name] = _gguf_model(path)
    embedded = _embedded()
    if embedded is not None and not (EMBEDDED_NAME in found and found[EMBEDDED_NAME].converted):
        found[EMBEDDED_NAME] = embedded
    return [found[name] for name in sorted(found)]


def model_name(path: Path) -> str:
    """Return the name of a model, from which the name of its conversion is made.

    It is the name of its folder, of its repository in the Hugging Face cache, or of its GGUF file without suffix and
    part number, as far as that can be the name of a folder.
    """
    if (file := _find_gguf(path)) is not None:  # Unresolved: the Hugging Face cache links to files named by checksum.
        return gguf_name(file.name)
    resolved = path.resolve()
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent.name.split("--")[-1]
    return resolved.name


def gguf_name(file_name: str) -> str:
    """Return the name of the model in a GGUF file, which can be the name of a folder.

    It is printable, without separators, not hidden, and not too long.
    """
    parsed = parse_name(file_name)
    text = file_name if parsed is None else parsed.stem
    plain = "".join(letter if letter.isprintable() and letter not in "/\\" else "_" for letter in text)
    return plain.encode(errors="replace")[:_MAX_STEM_BYTES].decode(errors="ignore").strip(". ") or "model"


def _is_path(text: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return text in (".", "..") or text.startswith("~") or any(separator in text for separator in separators)


def _by_name(name: str) -> LocatedModel | None:
    path = models_folder() / name
    if is_model(path):
        return LocatedModel(name, path, converted=True)
    if name == EMBEDDED_NAME and _embedded() is not None:
        return _embedded()
    if is_checkpoint(path):
        return LocatedModel(name, path, converted=False)
    if is_gguf(path):
        return _gguf_model(path)
    return _pulled(name)  # Last, since it reads the catalogue.


def _pulled(name: str) -> LocatedModel | None:
    """Return the model that was pulled by a name of the catalogue, in the first preset that is here."""
    from qwchat.store.catalogue import find_entry

    entry = find_entry(name)
    if entry is None:
        return None
    paths = [models_folder() / f"{entry.folder_name}-{preset}" for preset in PRESETS]
    return next((LocatedModel(path.name, path, converted=True) for path in paths if is_model(path)), None)


def _embedded() -> LocatedModel | None:
    path = embedded_checkpoint()
    return LocatedModel(EMBEDDED_NAME, path, converted=False, embedded=True) if is_checkpoint(path) else None


def _by_path(path: Path) -> LocatedModel:
    if is_model(path):
        return LocatedModel(model_name(path), path, converted=True)
    if is_checkpoint(path):
        return LocatedModel(model_name(path), path, converted=False)
    if (file := _find_gguf(path)) is not None:
        return _gguf_model(file)
    raise ModelError(
        f"{path} is neither a converted model (manifest.json) nor a checkpoint (config.json and model.safetensors), "
        "and contains no GGUF file: give another folder"
    )


def _gguf_model(path: Path) -> LocatedModel:
    """Return the GGUF model that has the file `path`."""
    first = parts_of(path)[0]
    return LocatedModel(first.name, first, converted=False)


def _find_gguf(path: Path) -> Path | None:
    """Return a file of the GGUF model that `path` means, or None if it means something else.

    Raises ModelError if it is a folder with several GGUF models, which the message lists.
    """
    if not path.is_dir():
        return path if is_gguf(path) else None
    if is_model(path) or is_checkpoint(path):
        return None
    try:
        return find_gguf(path) if gguf_models(path) else None
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    except OSError:  # Such as a folder without access.
        return None


def _not_found_message(name: str) -> str:
    name = name if len(name) <= _MAX_NAME_SHOWN else name[:_MAX_NAME_SHOWN] + "…"
    if _is_path(name):
        return f"there is no file or folder {name}: give a model, a checkpoint, a GGUF file, or a name from qwchat list"
    from qwchat.store.catalogue import find_entry

    if find_entry(name):
        return f"there is no model {name!r} here: pull it with qwchat pull {name}"
    names = [model.name for model in available()]
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"there is no model {name!r}: did you mean {close[0]}?"
    give = "give the path of a model, a checkpoint or a GGUF file"
    if not names:
        return f"there is no model {name!r}, and the models folder {models_folder()} is empty: {give}"
    return f"there is no model {name!r}: choose from {', '.join(names)}, or {give}"
