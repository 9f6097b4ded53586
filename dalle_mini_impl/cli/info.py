"""`dalle info`: what a model consists of."""

import json

import click

from dalle_mini_impl.errors import UserError


@click.command()
@click.argument("model", default="emoji")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(model: str, as_json: bool) -> None:
    """Tell a model's parts, sizes, identities and settings, as far as it has them yet."""
    from dalle_mini_impl import checkpoint
    from dalle_mini_impl.config_io import to_dict
    from dalle_mini_impl.text_part import IMPORTED_TEXT_TOKENIZER, TEXT_TOKENIZER

    folder = checkpoint.find(model)
    facts: dict[str, object] = {"model": model}
    if any((folder / name).is_file() for name in (TEXT_TOKENIZER, IMPORTED_TEXT_TOKENIZER)):
        tokenizer = checkpoint.load_text_tokenizer(folder)
        facts["checkpoint"] = checkpoint.fingerprint(folder)
        facts["text_tokenizer"] = {"identity": tokenizer.identity, "vocab_size": tokenizer.vocab_size}
    if (folder / "config.yaml").is_file():
        facts["sampling"] = to_dict(checkpoint.load_settings(folder))
    for name in ("image_tokenizer", "transformer", "scorer"):
        if (folder / f"{name}.safetensors").is_file():
            part = checkpoint.read_part(folder, name)
            parameters = sum(tensor.numel() for tensor in part.tensors.values())
            size = round(part.path.stat().st_size / 1e6, 1)
            facts[name] = {"identity": part.identity, "numbers": parameters, "megabytes": size,
                           "trained_with": part.trained_with, "config": part.config}  # fmt: skip
    if len(facts) == 1:
        raise UserError(f"{folder} has no part of a model; expected {TEXT_TOKENIZER} or a .safetensors file "
                        f"made by training or dalle import")  # fmt: skip
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in facts.items():
        click.echo(f"{name}: {value}" if isinstance(value, str) else f"{name}:")
        for key, inner in value.items() if isinstance(value, dict) else ():
            click.echo(f"  {key}: {inner}")
