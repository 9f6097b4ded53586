"""Stage 1: train the text tokenizer on the captions of the training pictures.

dalle train text-tokenizer --config configs/emoji/text_tokenizer.yaml
"""

from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.training import TextTokenizerRun
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.text.sentencepiece_tokenizer import train_text_tokenizer
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.util.errors import UserError


def main(config: TextTokenizerRun) -> None:
    """Train and save the text tokenizer.

    Raises:
        UserError: a setting is wrong, or the captions support no vocabulary of that size.
    """
    check_ranges(config)
    if not config.out:
        raise UserError("out is empty; name the .model file to write")
    entries = open_store(config.data, "train").entries
    # Each distinct caption once, so that a name does not count more because several vendors drew the thing.
    captions = sorted({caption.text for entry in entries for caption in entry.captions})
    tokenizer = train_text_tokenizer(captions, config.out, config.vocab_size, config.normalization)
    lengths = [len(tokenizer.encode(caption)) for caption in captions]
    print(
        f"text tokenizer {tokenizer.identity}: {tokenizer.vocab_size} ids from {len(captions)} captions, "
        f"{sum(lengths) / len(lengths):.1f} ids per caption, longest {max(lengths)}; "
        f"written to {config.out}"
    )


if __name__ == "__main__":
    run_stage("text-tokenizer", main)
