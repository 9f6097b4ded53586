"""Low-rank adapters (LoRA) for the transformer, by the library `peft`, and their merging into plain weights."""

from collections.abc import Callable

import torch

from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.fsdp import fsdp_requested
from dalle_mini_impl.util.errors import UserError, need_extra

MATRICES = r"transformer\.blocks\.\d+\.(attention|mlp)\.(qkv|out|up|down)"
"""Names of the linear layers that get an adapter."""
WRAPPED = ".base_layer"
"""What `peft` adds to the name of a layer that has an adapter."""


def add_adapters(losses: StreamLoss, config: TransformerRun) -> None:
    """Put an adapter beside each matrix of the blocks and freeze all other weights, as `lora` says; in place.

    The second matrix of an adapter is zero at first, so the outputs stay the same.

    Args:
        losses: the transformer to be trained, with the weights it starts from.
        config: settings of the stage.

    Raises:
        UserError: there is nothing to adapt, the run is sharded, or the `lora` extra is not installed.
    """
    if not config.lora.rank:
        return
    if not config.start_from:
        raise UserError(
            f"expected start_from with lora.rank {config.lora.rank}, got none: adapters beside random weights learn "
            f"nothing; name a checkpoint, or set lora.rank=0"
        )
    if fsdp_requested():
        raise UserError("expected a run without FSDP for lora.rank, got one with; use distributed_type MULTI_GPU")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise need_extra("peft", "lora") from error
    adapters = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=MATRICES)  # type: ignore[arg-type]
    inject_adapter_in_model(adapters, losses)
    for parameter in losses.parameters(recurse=False):  # what it learns to be told
        parameter.requires_grad_(True)
    if config.lora.embeddings:
        for name, parameter in losses.transformer.named_parameters():
            if name.startswith(("embed.", "positions.", "head.", "image_prefix.")):
                parameter.requires_grad_(True)


@torch.no_grad()
def with_merged_adapters(losses: StreamLoss, build: Callable[[], StreamLoss]) -> StreamLoss:
    """The same function as a module without adapters, for sampling and saving; `losses` itself if it has none.

    Args:
        losses: with or without adapters; stays as it is.
        build: makes another module of the same shape without adapters.
    """
    layers = {name: layer for name, layer in losses.named_modules() if hasattr(layer, "get_delta_weight")}
    if not layers:
        return losses
    weights = {name.replace(WRAPPED, ""): value for name, value in losses.state_dict().items() if ".lora_" not in name}
    for name, layer in layers.items():
        weights[f"{name}.weight"] = layer.get_base_layer().weight + layer.get_delta_weight(layer.active_adapter[0])
    with torch.random.fork_rng(devices=[]):  # building must not change the run's random numbers
        merged = build()
    merged.load_state_dict(weights)
    return merged.eval()
