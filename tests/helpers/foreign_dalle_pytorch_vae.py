"""DALLE-pytorch's DiscreteVAE: names and shapes in its files, and a slow reference for it."""

from torch import Tensor
from torch.nn import functional as F

from helpers.foreign_tensors import Shapes, Tensors, conv, conv_shapes


def discrete_vae_shapes(layers: int, blocks: int, hidden: int, embed_dim: int, n_ids: int) -> Shapes:
    """Names and shapes in the weights of a vae.pt.

    Args:
        layers: convolutions that halve the picture (`num_layers`).
        blocks: residual blocks of each network (`num_resnet_blocks`).
        hidden: width of the networks (`hidden_dim`).
        embed_dim: width of a codebook vector (`codebook_dim`).
        n_ids: codebook size (`num_tokens`).
    """
    shapes: Shapes = {"codebook.weight": (n_ids, embed_dim)}
    for layer in range(layers):
        shapes |= conv_shapes(f"encoder.{layer}.0", hidden if layer else 3, hidden, 4)
    for block in range(blocks):
        for network, first_block in (("encoder", layers), ("decoder", 1)):
            for layer, kernel in ((0, 3), (2, 3), (4, 1)):
                shapes |= conv_shapes(f"{network}.{first_block + block}.net.{layer}", hidden, hidden, kernel)
    shapes |= conv_shapes(f"encoder.{layers + blocks}", hidden, n_ids, 1)
    first_layer = 0
    if blocks:
        shapes |= conv_shapes("decoder.0", embed_dim, hidden, 1)
        first_layer = 1 + blocks
    for layer in range(layers):
        name = f"decoder.{first_layer + layer}.0"
        inputs = hidden if layer or blocks else embed_dim
        # A transposed convolution: inputs come first
        shapes |= {f"{name}.weight": (inputs, hidden, 4, 4), f"{name}.bias": (hidden,)}
    return shapes | conv_shapes(f"decoder.{first_layer + layers}", hidden, 3, 1)


def run_discrete_vae(tensors: Tensors, network: str, x: Tensor) -> Tensor:
    """Run `encoder` or `decoder` layer by layer; what a layer is follows from the names of its tensors."""
    n_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith(network))
    for layer in range(n_layers):
        name = f"{network}.{layer}"
        if f"{name}.net.0.weight" in tensors:
            h = conv(tensors, f"{name}.net.0", x, padding=1).relu()
            x = x + conv(tensors, f"{name}.net.4", conv(tensors, f"{name}.net.2", h, padding=1).relu())
        elif f"{name}.weight" in tensors:
            x = conv(tensors, name, x)
        elif network == "encoder":
            x = conv(tensors, f"{name}.0", x, stride=2, padding=1).relu()
        else:
            weight, bias = tensors[f"{name}.0.weight"], tensors[f"{name}.0.bias"]
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1).relu()
    return x
