"""A model called as the pipelines of diffusers are: prompts in, pictures out. diffusers itself is not used."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.pipeline.canvas import model_size
from dalle_mini_impl.pipeline.ranking import finish
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.generate import generate_cells
from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

OUTPUT_TYPES = ("pil", "pt", "np")
"""PIL pictures, a tensor or an array."""
SEEDS = 2**32
"""Each candidate's seed is drawn from the numbers below."""
OPTIONS = (*(field.name for field in dataclasses.fields(SamplingConfig) if field.name != "guidance"), "chunk")
"""Arguments of `DalleMini.generate` that a call takes under the same name."""
Images = list[Image.Image] | Tensor | np.ndarray
StepCallback = Callable[["DalleMini", int, int, dict[str, Any]], Mapping[str, Any] | None]


class PipelineOutput(NamedTuple):
    """What a call returns."""

    images: Images
    """Those of the first prompt, then those of the second …: with `pil` a list of RGB pictures, RGBA if sampled with
    `transparent`; with `pt` (N, 3 or 4, H, W), with `np` (N, H, W, 3 or 4), both float32 in [0, 1] on the CPU."""
    results: list[Result]
    """What `DalleMini.generate` returns for each prompt: the same pictures with seeds, scores and settings."""


def call(
    dalle: "DalleMini",
    prompt: str | Sequence[str],
    *,
    num_images_per_prompt: int = 1,
    candidates: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    output_type: str = "pil",
    return_dict: bool = True,
    callback_on_step_end: StepCallback | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("image_ids",),
    **options: Any,
) -> PipelineOutput | tuple[Images]:
    """Draw pictures, with the arguments that pipelines of diffusers take.

    Args:
        dalle: the model.
        prompt: one caption or several, whose candidates are decoded together.
        num_images_per_prompt: how many pictures to return for each.
        candidates: sample so many for each prompt and return the best, best first; None samples as many as are
            returned, in the order of their seeds.
        generator: gives each candidate its seed: one for all, which moves on, or one for each candidate; None uses
            torch's own on the CPU, which `torch.manual_seed` sets.
        guidance_scale: 1 is off; None is the model's recommendation.
        negative_prompt: what guidance moves away from; one for all, or one for each prompt.
        output_type: `pil`, `pt` or `np`; see `PipelineOutput`.
        return_dict: False returns a tuple with the pictures alone.
        callback_on_step_end: called after each image id, as `callback(dalle, step, timestep, tensors)`: `step` counts
            from 0, `timestep` is how many ids of these pictures are still to be sampled, and `tensors` has as
            `image_ids` those so far, (n, m) in the order of the stream. Prompts are then drawn one after the other,
            with the same pictures. It may end the call by an exception, and cannot change ids.
        callback_on_step_end_tensor_inputs: names of what `tensors` has.
        **options: `chunk` and sampling settings of `DalleMini.generate`, such as `temperature`. `height` and `width`
            may be given if they are the model's. So may `num_inference_steps` if it is the number of image ids of a
            picture; with a diffusion decoder it is another name of `steps`.

    Returns:
        The pictures, as `.images`.

    Raises:
        UserError: a value is out of range, or is an argument of diffusers' pipelines that this model has not.
    """
    prompts = _texts(prompt, "prompt")
    each = _candidates(num_images_per_prompt, candidates)
    if output_type not in OUTPUT_TYPES:
        raise UserError(
            f"expected output_type {', '.join(OUTPUT_TYPES)}, got {output_type!r}; image ids are in .results"
        )
    if unknown := set(callback_on_step_end_tensor_inputs) - {"image_ids"}:
        raise UserError(
            f"expected image_ids in callback_on_step_end_tensor_inputs, got {min(unknown)!r}; a token model has no "
            f"other tensors"
        )
    settings: dict[str, Any] = {**_sampling_options(dalle, options), "guidance": guidance_scale}
    chunk = settings.pop("chunk", None)
    if candidates is None:
        settings.setdefault("rank", "none")
    negatives = [""] if negative_prompt is None else _texts(negative_prompt, "negative_prompt")
    if len(negatives) not in (1, len(prompts)):
        raise UserError(
            f"expected one negative_prompt, or one for each of {len(prompts)} prompts, got {len(negatives)}; change it"
        )
    dalle.request("", candidates=each, chunk=chunk, **settings)  # refuses too many before each of them has a seed
    seeds = _seeds(generator, len(prompts) * each)
    requests = [
        {"prompt": text, "negative": negatives[number % len(negatives)], "keep": num_images_per_prompt}
        | {"seeds": seeds[number * each : (number + 1) * each], **settings}
        for number, text in enumerate(prompts)
    ]
    if callback_on_step_end is None:
        results = [*dalle.generate_many(requests, chunk=chunk)]
    else:
        names = callback_on_step_end_tensor_inputs
        results = [*_draw_with_callback(dalle, requests, chunk, callback_on_step_end, names)]
    images = _convert([candidate.image for result in results for candidate in result], output_type)
    return PipelineOutput(images, results) if return_dict else (images,)


def _candidates(kept: int, candidates: int | None) -> int:
    """How many candidates each prompt gets."""
    each = kept if candidates is None else candidates
    if not (isinstance(kept, int) and isinstance(each, int) and 1 <= kept <= each):
        raise UserError(
            f"expected num_images_per_prompt of 1 or more and at least as many candidates, got {kept!r} and {each!r}; "
            f"change one"
        )
    return each


def _texts(value: str | Sequence[str], name: str) -> list[str]:
    """One text or several as a list."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"expected a text or a list of texts as {name}, got {value!r}; give at least one")
    return texts


def _sampling_options(dalle: "DalleMini", options: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are passed on, once those that the model itself decides are checked and left out."""
    if (options.get("decoder") or dalle.sampling.decoder) == "diffusion" and dalle.diffusion_decoder:
        fixed = dict.fromkeys(("height", "width"), dalle.diffusion_decoder.size)
        if "num_inference_steps" in options:
            options = {"steps": options["num_inference_steps"], **options}
            del options["num_inference_steps"]
    else:
        width, height = model_size(dalle.image_tokenizer, dalle.stream.config.grid)
        fixed = {"height": height, "width": width, "num_inference_steps": dalle.stream.image_length}
    for name, value in options.items():
        if name not in (*fixed, *OPTIONS):
            raise UserError(
                f"expected arguments that a token model has, got {name}; leave it out, or use DalleMini.generate, "
                f"complete or variations"
            )
        if name in fixed and value not in (None, fixed[name]):
            raise UserError(f"expected {name} {fixed[name]}, the model's own, got {value!r}; leave it out")
    return {name: value for name, value in options.items() if name not in fixed}


def _seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """One seed per candidate, each drawn by itself, so that the first ones do not depend on how many there are."""
    generators: list[Any] = list(generator) if isinstance(generator, list | tuple) else [generator] * count
    if len(generators) != count:
        raise UserError(f"expected one generator, or one for each of {count} candidates, got {len(generators)}")
    if wrong := [one for one in generators if not isinstance(one, torch.Generator | None)]:
        raise UserError(
            f"expected torch.Generator as generator, got {type(wrong[0]).__name__}; give "
            f"torch.Generator().manual_seed(0)"
        )
    return [
        int(torch.randint(SEEDS, (), generator=one, device=one.device if one else torch.device("cpu")))
        for one in generators
    ]


def _draw_with_callback(
    dalle: "DalleMini",
    requests: Sequence[Mapping[str, Any]],
    chunk: int | None,
    callback: StepCallback,
    names: Sequence[str],
) -> Iterator[Result]:
    """Draw one prompt after the other, and call back after each image id."""
    step = 0
    for arguments in requests:
        request = dalle.request(**arguments, chunk=chunk)
        if request.sampling.decoder != "tokens":
            raise UserError("expected decoder tokens with callback_on_step_end, got diffusion; leave one out")
        cells = generate_cells(dalle.transformer, dalle.stream, request.ids, chunk=request.chunk)
        while True:
            try:
                ids = next(cells).clone()
            except StopIteration as end:
                generated = end.value
                break
            tensors = dict.fromkeys(names, ids)
            changed = callback(dalle, step, dalle.stream.image_length - ids.shape[1], tensors) or {}
            if any(value is not ids for value in changed.values()):
                raise UserError(
                    "expected callback_on_step_end to return what it was given, got other tensors; sampled ids cannot "
                    "be changed"
                )
            step += 1
        yield finish(request, generated, dalle.transformer, dalle.stream, dalle.image_tokenizer, dalle.source)


def _convert(images: list[Image.Image], output_type: str) -> Images:
    """Pictures of one size in the form that was asked for."""
    if output_type == "pil":
        return images
    values = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    return values if output_type == "np" else torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()
