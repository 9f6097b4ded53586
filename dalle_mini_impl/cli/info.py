"""`dalle info`: the parts, sizes, settings and measured quality of a model."""

import click

from dalle_mini_impl.cli.options import echo_text, examples, json_option, write_json_file


@click.command(epilog=examples("dalle info emoji", "dalle info runs/emoji/model --json -"))
@click.argument("model", default="emoji")
@json_option("Write everything and the config of each part as JSON to FILE; - is standard output.")
def info(model: str, json_file: str | None) -> None:
    """Show the parts, settings and measured quality of a model.

    MODEL is a shipped name, a checkpoint folder, which may lack parts, or hf:USER/REPO. Shown are the sizes and
    identities of the parts, sampling settings, languages, licence, training data and measured quality.

    In JSON, each part has its "identity" and "megabytes"; all but the text tokenizer also have "parameters" (how many
    weights), "trained_with" (the identities of other parts) and "config".
    """
    from dalle_mini_impl.checkpoint.describe import checkpoint_info, info_lines
    from dalle_mini_impl.checkpoint.find import find_checkpoint

    metadata = {"model": model, **checkpoint_info(find_checkpoint(model))}
    echo_text("\n".join([f"model: {model}", *info_lines(metadata)]), json_file)
    write_json_file(json_file, metadata)
