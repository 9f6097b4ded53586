"""How much of the codebook a run uses, counted over one epoch at a time."""

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.evaluate.metrics import count_ids, perplexity, usage
from dalle_mini_impl.train.shared.loop import TrainingLog

COLLAPSE = 0.1
REMEDIES = {
    "vq": "lower optimizer.learning_rate or model.codebook_size",
    "simvq": "lower optimizer.learning_rate or raise commitment",
    "fsq": "lower optimizer.learning_rate or use fewer levels",
    "lfq": "raise the second number of entropy or lower model.codebook_size",
    "gumbel": "raise dvae.kl_weight, or let dvae.temperature fall later",
}


class CodebookUse:
    """Counts of ids, over the current epoch."""

    def __init__(self, accelerator: Accelerator, config: ImageTokenizerConfig) -> None:
        self.accelerator, self.config = accelerator, config
        self.counts = torch.zeros(config.codebook_size, dtype=torch.int64)
        """Of this process. Part of the state of a run."""
        self.warned = False

    def add(self, image_ids: Tensor) -> None:
        """Count the ids of one pass."""
        self.counts += count_ids(image_ids, self.config.codebook_size)

    def figures(self) -> dict[str, float]:
        """Usage (0 to 1), perplexity (1 to K) and how many ids have not occurred, over all processes."""
        counts = self.accelerator.reduce(self.counts.to(self.accelerator.device), "sum").cpu()
        return {"usage": usage(counts), "perplexity": perplexity(counts), "dead": int((counts == 0).sum())}

    def end_epoch(self, log: TrainingLog) -> None:
        """Reset the counts; warns, once per run, if little of the codebook was used."""
        share = self.figures()["usage"]
        if share < COLLAPSE and not self.warned:
            self.warned = True
            log.say(
                f"warning: only {share:.1%} of the codebook was used in an epoch; {REMEDIES[self.config.quantizer]}"
            )
        self.counts.zero_()
