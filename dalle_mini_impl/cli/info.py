"""`dalle info`: what a model consists of and says of itself."""

import json

import click


@click.command()
@click.argument("model", default="emoji")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, with the whole config of each part.")
def info(model: str, as_json: bool) -> None:
    """Tell a model's parts, sizes, identities, settings, languages, licence, training data and measured quality.

    MODEL is emoji, a checkpoint folder, which may be without some parts yet, or hf:USER/REPO.
    """
    from dalle_mini_impl.checkpoint.describe import checkpoint_info, info_lines
    from dalle_mini_impl.checkpoint.find import find_checkpoint

    facts = {"model": model, **checkpoint_info(find_checkpoint(model))}
    lines = [json.dumps(facts, ensure_ascii=False)] if as_json else [f"model: {model}", *info_lines(facts)]
    click.echo("\n".join(lines))
