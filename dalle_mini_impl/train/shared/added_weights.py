"""A saved state of a run that is without image embeddings, or not told of augmentation, for one that goes on with them.

What the model has more of gets the values that it has in the new run and no moments; all else is the state's.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.fsdp import full_tensor

NEW = re.compile(r"(.*\.)?(image_prefix\.project\.weight|augmented)")
"""Names of weights that a model without image embeddings, or that is not told of augmentation, lacks."""
LONGER = re.compile(r"(.*\.)?(embed\.weight|head\.(weight|bias)|positions\.\d+\.weight)")
"""Names of weights that have a row more for each position of an image embedding, at their end."""


def add_weights(state: dict[str, Any], model: nn.Module, optimizers: list[Any], ema: Ema, positions: int) -> list[str]:
    """Add to an unsharded state, in place, what its run's model did not have.

    Args:
        state: from `state.read_file`.
        model: of the new run, with its first weights, as all below.
        optimizers: of the new run.
        ema: of the new run.
        positions: how many are new for an image embedding; 0 if that is not what is added.

    Returns:
        What was added to the weights, such as `4 rows of transformer.embed.weight`.
    """
    known = {*state["model"]}
    added = _add_weights(state["model"], model.state_dict(), positions)
    _add_weights(state["average"], ema.state, positions)
    names = {parameter: name for name, parameter in model.named_parameters()}
    new = {one for one, name in names.items() if name not in known and NEW.fullmatch(name)}
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=False):
        _add_parameters(optimizer, saved, names, new, positions)
    return added


def _add_weights(saved: dict[str, Tensor], own: dict[str, Tensor], positions: int) -> list[str]:
    """Add to saved weights what they lack of those of a run."""
    added = []
    for name, value in own.items():
        if name not in saved and NEW.fullmatch(name):
            saved[name] = full_tensor(value).clone()
            added.append(name)
        elif name in saved and LONGER.fullmatch(name):
            longer = _longer(saved[name], full_tensor(value), positions)
            added += [f"{positions} rows of {name}"] if len(longer) > len(saved[name]) else []
            saved[name] = longer
    return added


def _add_parameters(
    optimizer: Any,
    saved: dict[str, Any],
    names: dict[nn.Parameter, str],
    new: set[nn.Parameter],
    positions: int,
) -> None:
    """Number the moments of a saved optimizer as the run's own does, and add to them what they lack."""
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        group["params"] += [one for one in own["params"] if one in new]  # their number counts
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    known = [number for number, one in enumerate(parameters) if one not in new]
    moments = {}
    for number, own_moments in zip(known, map(saved["state"].get, range(len(known))), strict=True):
        parameter = parameters[number]
        if own_moments is not None and LONGER.fullmatch(names.get(parameter, "")):
            zeros = torch.zeros_like(full_tensor(parameter))
            own_moments = {name: _longer(value, zeros, positions) for name, value in own_moments.items()}
        if own_moments is not None:
            moments[number] = own_moments
    saved["state"] = moments


def _longer(saved: Tensor, own: Tensor, positions: int) -> Tensor:
    """Saved values with the last rows of the run's own, if these are so many more."""
    if positions and saved.ndim and len(own) == len(saved) + positions:
        return torch.cat([saved, own[-positions:].to(saved)])
    return saved
