"""Find models by path or name: the models folder and the built-in model.

A user gives a model as a model folder, a name, or the folder of a Hugging Face checkpoint. A name is looked up in the
models folder first; "mini" is the built-in model and the default. A text with a path separator is always a path.
Nothing is converted or loaded here.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.presets import PRESETS
from quant.safe_files import SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, is_regular_file
from qwchat.errors import ModelError
from qwchat.text_files import expand_path

EMBEDDED_NAME = "mini"
CONVERTED_SUFFIX = "-q4"

_MAX_NAME_SHOWN = 200  # characters of a name in a message
_WEIGHT_FILES = (SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class LocatedModel:
    """A model that was found.

    Attributes:
        name: its name.
        path: its folder.
        converted: True for a model folder, False for a checkpoint that needs a conversion.
        embedded: True if it came with the program.
    """

    name: str
    path: Path
    converted: bool
    embedded: bool = False

    @property
    def destination(self) -> Path:
        """Folder for the conversion of a checkpoint: the models folder, checkpoint name plus `-q4`."""
        return models_folder() / f"{self.name}{CONVERTED_SUFFIX}"


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


def locate(model: str | None, environment: Mapping[str, str] = os.environ) -> LocatedModel:
    """Find the model that `model` names. None means QWCHAT_MODEL, or the built-in model.

    Raises:
        ModelError: there is no such model (the message names similar ones), or the folder is neither a model nor a
            checkpoint.
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
    if path.suffix.lower() == ".gguf":
        raise ModelError(
            f"{path} is a GGUF file, which is not supported yet: give the folder of the original checkpoint"
        )
    raise ModelError(f"{path} is a file: give the folder of a model or a checkpoint")


def converted_folder(model: str) -> Path:
    """Return the folder of the converted model `model`, a path or a name.

    Raises ModelError: there is no such model, or it is a checkpoint that has not been converted.
    """
    located = locate(model)
    if located.converted:
        return located.path
    if is_model(located.destination):
        return located.destination
    raise ModelError(
        f"{located.path} is a checkpoint that has not been converted: run `qwchat convert {located.path}`, "
        "or call quant.convert, and load the result"
    )


def available() -> list[LocatedModel]:
    """Return the models in the models folder and the built-in one, sorted by name."""
    found = {}
    folder = models_folder()
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and (is_model(path) or is_checkpoint(path)):
                found[path.name] = LocatedModel(path.name, path, is_model(path))
    embedded = _embedded()
    if embedded is not None and not (EMBEDDED_NAME in found and found[EMBEDDED_NAME].converted):
        found[EMBEDDED_NAME] = embedded
    return [found[name] for name in sorted(found)]


def model_name(folder: Path) -> str:
    """Return the name of the model in `folder`: the folder's name, or the repository's in the Hugging Face cache."""
    resolved = folder.resolve()
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent.name.split("--")[-1]
    return resolved.name


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
    if any(path.glob("*.gguf")):
        raise ModelError(f"{path} contains GGUF files, which are not supported yet: give the original checkpoint")
    raise ModelError(
        f"{path} is neither a converted model (manifest.json) nor a checkpoint (config.json and model.safetensors): "
        "give another folder"
    )


def _not_found_message(name: str) -> str:
    name = name if len(name) <= _MAX_NAME_SHOWN else name[:_MAX_NAME_SHOWN] + "…"
    if _is_path(name):
        return f"there is no folder {name}: give the folder of a model or a checkpoint, or a name from qwchat list"
    from qwchat.store.catalogue import find_entry

    if find_entry(name):
        return f"there is no model {name!r} here: pull it with qwchat pull {name}"
    names = [model.name for model in available()]
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"there is no model {name!r}: did you mean {close[0]}?"
    give = "give the folder of a model or a checkpoint"
    if not names:
        return f"there is no model {name!r}, and the models folder {models_folder()} is empty: {give}"
    return f"there is no model {name!r}: choose from {', '.join(names)}, or {give}"
