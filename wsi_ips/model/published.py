"""Published encoders: their configuration, weights from a file, and messages where they cannot be fetched.

A pickle is loaded only if it holds nothing but tensors, and no code of a repository is ever run.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wsi_ips.errors import CheckpointError, RecipeError

_HUB = re.compile(r"(hf[-_]hub|local-dir):")
_WRAPPERS = ("state_dict", "model", "teacher")
_RESNET_PLACES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
"""Parts of torchvision's ResNets and their positions in our trunk."""


@dataclass(frozen=True)
class ModelConfig:
    """Content of a model's ``config.json``.

    Attributes
    ----------
    architecture
        Its name in timm.
    arguments
        Arguments it was built with.
    mean, std
        Mean and deviation per channel, for pixels in 0-1; empty where not given.
    """

    architecture: str
    arguments: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_on_hub(name: str) -> bool:
    """Tell whether a timm name is a repository or a folder instead of one of timm's own models."""
    return _HUB.match(name) is not None


def hub_config(name: str, *, beside: Path | None = None) -> ModelConfig:
    """Read the configuration of a model of the hub: from next to its weights, else from the cache or the network.

    Parameters
    ----------
    name
        ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.
    beside
        Weights file; a ``config.json`` in its folder comes first.

    Raises
    ------
    OSError
        It cannot be fetched.
    RecipeError
        It is not the configuration of a timm model.
    """
    from timm.models import load_model_config_from_hf

    source, _, place = name.partition(":")
    try:
        if beside is not None and (beside.parent / "config.json").is_file():
            data, architecture, arguments = _stored_config(beside.parent)
        elif source == "local-dir":
            data, architecture, arguments = _stored_config(Path(place))
        else:
            data, architecture, arguments = load_model_config_from_hf(place)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"key `model.encoder`: {name}: its config.json is not that of a timm model ({error!r}); wsi-ips builds "
            "timm models only"
        ) from error
    return ModelConfig(architecture, dict(arguments or {}), tuple(data.get("mean") or ()), tuple(data.get("std") or ()))


def _stored_config(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Read preprocessing, architecture and arguments from a ``config.json``."""
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return stored.get("pretrained_cfg", stored), stored["architecture"], stored.get("model_args", {})


def timm_arguments(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert stored arguments for timm: layers stored by name become classes.

    Raises
    ------
    RecipeError
        The name of a layer is unknown.
    """
    from timm.layers.mlp import GluMlp, Mlp, SwiGLU, SwiGLUPacked

    arguments = dict(stored)
    layer = arguments.get("mlp_layer")
    if layer is not None:
        known = {"GluMlp": GluMlp, "Mlp": Mlp, "SwiGLU": SwiGLU, "SwiGLUPacked": SwiGLUPacked}
        if layer not in known:
            raise RecipeError(f"key `model.encoder`: layer `{layer}` is unknown; known are {', '.join(known)}")
        arguments["mlp_layer"] = known[layer]
    arguments.pop("num_classes", None)
    return arguments


def read_weights(path: Path, *, wanted: Collection[str]) -> dict[str, Tensor]:
    """Read a weights file under the names of a trunk, without the tensors of a classifier.

    Parameters
    ----------
    path
        ``.safetensors``, or a file of ``torch.save`` that holds tensors only.
    wanted
        Names of the trunk's parameters and buffers.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or a pickle with more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Any] = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"encoder weights {path}: no such file; correct `model.weights`") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"encoder weights {path}: cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"encoder weights {path}: holds more than tensors, which could run code; save its state dict as "
            ".safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(tensors, dict) and isinstance(tensors.get(wrapper), dict):
            tensors = tensors[wrapper]
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"encoder weights {path}: no state dict; save `model.state_dict()`")
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if "0.weight" in wanted and "conv1.weight" in named:
        named = {_resnet_place(name): tensor for name, tensor in named.items()}
        named = {name: tensor for name, tensor in named.items() if name in wanted}
    return {
        name: t for name, t in named.items() if name in wanted or not name.startswith(("fc.", "head.", "classifier."))
    }


def _resnet_place(name: str) -> str:
    first, dot, rest = name.partition(".")
    return f"{_RESNET_PLACES.get(first, first)}{dot}{rest}"


def access_explained(name: str, error: OSError) -> CheckpointError:
    """Build the error for a published model that cannot be fetched: how to get access, or how to do without."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    from wsi_ips.model.encoders import find_preset

    preset = find_preset(name)
    repository = (preset.model if preset else name).rpartition(":")[2]
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = isinstance(error, GatedRepoError) or (isinstance(error, HfHubHTTPError) and status in (401, 403))
    if refused or (isinstance(error, RepositoryNotFoundError) and preset is not None):
        return CheckpointError(
            f"encoder {name}: its owners must grant access; ask for it at https://huggingface.co/{repository}, "
            "make a token at https://huggingface.co/settings/tokens and set it as HF_TOKEN (or run `hf auth login`), "
            "or give a file you have in `model.weights`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"encoder {name}: there is no repository {repository}, or it is private; correct `model.encoder`, or set "
            "HF_TOKEN if you have access"
        )
    return CheckpointError(
        f"encoder {name}: cannot be fetched ({error}); give a local file in `model.weights` (for a model of the hub "
        "with its config.json beside it), or set `model.pretrained: false`"
    )
