"""How much of the codebook is used in training, counted per epoch."""

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.evaluate.metrics import count_ids, perplexity, usage
from dalle_mini_impl.train.shared.loop import TrainingLog

COLLAPSE_USAGE = 0.1
"""Share of used ids below which the codebook counts as collapsed."""
REMEDIES = {
    "vq": "lower optimizer.learning_rate or model.codebook_size",
    "simvq": "lower optimizer.learning_rate or raise commitment",
    "fsq": "lower optimizer.learning_rate or use fewer levels",
    "lfq": "raise the second number of entropy or lower model.codebook_size",
    "gumbel": "raise dvae.kl_weight, or let dvae.temperature fall later",
}
"""What to change after a collapse, by quantizer."""


class CodebookUsage:
    """Counts how often each id occurs in the current epoch.

    Args:
        accelerator: the processes of the run.
        config: shape of the image tokenizer.
    """

    def __init__(self, accelerator: Accelerator, config: ImageTokenizerConfig) -> None:
        self.accelerator = accelerator
        self.config = config
        self.counts = torch.zeros(config.codebook_size, dtype=torch.int64, device=accelerator.device)
        """Counts of this process. Part of the resumable state."""
        self.warned = False

    def add(self, image_ids: Tensor) -> None:
        """Count the ids of one pass."""
        self.counts += count_ids(image_ids, self.config.codebook_size)

    def figures(self) -> dict[str, float]:
        """Usage (0 to 1), perplexity (1 to K) and number of unused ids, over all processes; all must call this."""
        counts = self.accelerator.reduce(self.counts, "sum").cpu()
        return {"usage": usage(counts), "perplexity": perplexity(counts), "dead": int((counts == 0).sum())}

    def end_epoch(self, log: TrainingLog) -> None:
        """Reset the counts; prints a warning, once per run, if little of the codebook was used."""
        used = self.figures()["usage"]
        if used < COLLAPSE_USAGE and not self.warned:
            self.warned = True
            log.message(
                f"warning: only {used:.1%} of the codebook was used in an epoch; {REMEDIES[self.config.quantizer]}"
            )
        self.counts.zero_()
