"""`dalle import`: models and tokenizers of other projects; one module per command, `interop` does the work."""

import click

from dalle_mini_impl.cli.lazy_group import LazyGroup

SECTIONS = {
    "Whole models": {
        "dalle-pytorch": "A DALLE of DALLE-pytorch, from dalle.pt.",
        "mindalle": "minDALL-E, from the folder its archive unpacks to.",
        "rudalle": "ruDALL-E: Malevich, Emojich, Surrealist or Kandinsky.",
    },
    "Image tokenizers": {
        "taming-vqgan": "A VQGAN of taming-transformers or latent-diffusion.",
        "llamagen-vq": "An image tokenizer of LlamaGen.",
        "openai-dvae": "OpenAI's dVAE of DALL-E 1.",
        "dalle-pytorch-vae": "A DiscreteVAE of DALLE-pytorch.",
    },
    "Text tokenizers": {
        "text-tokenizer": "CLIP's, BERT's, YouTokenToMe's, tokenizer.json.",
    },
    "Parts of DALL-E 2": {
        "prior-transformer": "A PriorTransformer of diffusers, trained here.",
        "diffusion-decoder": "Parts of diffusers' UnCLIPPipeline, trained here.",
    },
}
"""Heading -> command -> its line in `dalle import --help`."""


@click.group(
    "import",
    cls=LazyGroup,
    package=__name__,
    summaries={name: text for commands in SECTIONS.values() for name, text in commands.items()},
    sections=SECTIONS,
    subcommand_metavar="FORMAT",
    epilog="dalle import FORMAT --help shows the options of a format, with an example.",
)
def import_() -> None:
    """Convert a model or tokenizer of another project to ours.

    The result works without that project's package; docs/importing.md lists what was tested.
    """
