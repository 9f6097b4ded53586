"""Settings that train a scorer to guide painting."""

from dataclasses import dataclass

from dalle_mini_impl.config.ranges import Count, Natural, NonNegative, Share


@dataclass(frozen=True, kw_only=True)
class GuidingConfig:
    """Makes a scorer one that can guide painting: it learns what it would otherwise be fooled by.

    All off by default; may be switched on when a run is resumed. See `train/guiding.py`.
    """

    cut_share: Share = 0.0
    """Share of the pictures, scenes aside, of which the scorer sees a random cut as painting makes them."""
    attack: NonNegative = 0.0
    """Root mean square, in pixel values, of the change that is made to every picture so that it fits its caption less
    and others more (PGD, Madry et al. 2018); 0 makes none."""
    attack_steps: Count = 1
    """Gradient steps for that change, each as expensive as the training of the image tower."""
    spoiled: Natural = 0
    """Further pictures of each batch that match no caption: in turns two of its pictures blended, with noise, and one
    whose tiles are shuffled. At most half of the batch."""
    paintings: Natural = 0
    """Further pictures that match no caption: painted against the scorer itself, from random image ids, for captions of
    earlier batches, which return beside their true pictures. Each is painted on by a step in every step of training.
    At most the batch."""
    painting_steps: Count = 60
    """Steps after which a painting makes way for a new one."""
    painting_cuts: Count = 2
    """Cuts of a painting in a step."""

    @property
    def extra(self) -> int:
        """Pictures that are added to a batch."""
        return self.spoiled + 2 * self.paintings
