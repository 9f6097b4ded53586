"""`dalle evaluate`: measure the quality of an image tokenizer, a scorer or a whole model.

Each command has its own file, imported only when it is used.
"""

import click

from dalle_mini_impl.cli.lazy_group import LazyGroup

COMMANDS = {
    "generation": "R-precision of generated pictures.",
    "unclip": "DALL-E 2 against DALL-E 1; variations, interpolations, edits.",
    "scenes": "Objects, numbers, colours and places in pictures.",
    "sampling": "Temperature, guidance, top-k and ranking that suit a model.",
    "rerank": "What keeping the best of N candidates gains and costs.",
    "paint": "What painting (VQGAN+CLIP) gains.",
    "captions": "How often the likelihood finds a picture's name.",
    "precision": "What bf16 and int8 change.",
    "image-tokenizer": "Reconstruction quality, codebook use and speed.",
    "scorer": "Retrieval between pictures and names, by language.",
    "zero-shot": "Accuracy on a folder with one subfolder per class.",
}


@click.group(cls=LazyGroup, package=__name__, summaries=COMMANDS, subcommand_metavar="COMMAND")
def evaluate() -> None:
    """Measure the quality of a part or of a whole model.

    \b
    Most commands compare with the emoji set, which two commands make:
      dalle data emoji --out data/emoji
      dalle data store data/emoji --out data/emoji-store --fit crop
    """
