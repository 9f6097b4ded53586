"""Slow reference implementations: loops over plain numbers, without cache or batches."""

import cmath
import math

import torch
from torch import Tensor


def rms_norm(vector: list[float], weight: list[float], eps: float = 1e-6) -> list[float]:
    """Divide by the root of the mean square, then scale."""
    size = math.sqrt(sum(x * x for x in vector) / len(vector) + eps)
    return [w * x / size for w, x in zip(weight, vector, strict=True)]


def rotated(vector: list[float], coordinates: tuple[int, int], base: float) -> list[float]:
    """Rotary embedding in the plane; channel pair i has entries i and i + half.

    The first half of the pairs is rotated by the row, the second half by the column.
    """
    half = len(vector) // 2
    quarter = half // 2
    result = [0.0] * len(vector)
    for pair in range(half):
        coordinate, index = coordinates[pair // quarter], pair % quarter
        angle = coordinate * base ** -(index / quarter)
        rotated_pair = complex(vector[pair], vector[half + pair]) * cmath.exp(1j * angle)
        result[pair], result[half + pair] = rotated_pair.real, rotated_pair.imag
    return result


def attention(x: list[list[float]], layer, coordinates: list[tuple[int, int]] | None, base: float) -> list[list[float]]:
    """Causal attention of one sequence, one head and one position at a time."""
    width, heads = len(x[0]), layer.n_head
    size = width // heads
    project = [torch.tensor(row, dtype=torch.float64) @ layer.qkv.weight.double().T for row in x]
    q_weight, k_weight = layer.q_norm.weight.tolist(), layer.k_norm.weight.tolist()
    rows: list[list[float]] = [[] for _ in x]
    for head in range(heads):
        queries, keys, values = [], [], []
        for position, row in enumerate(project):
            parts = [row[part * width + head * size :][:size].tolist() for part in range(3)]
            q, k = rms_norm(parts[0], q_weight), rms_norm(parts[1], k_weight)
            if coordinates is not None:
                q, k = rotated(q, coordinates[position], base), rotated(k, coordinates[position], base)
            queries.append(q)
            keys.append(k)
            values.append(parts[2])
        for t, query in enumerate(queries):
            scores = [math.exp(dot(query, keys[s]) / math.sqrt(size)) for s in range(t + 1)]
            for channel in range(size):
                weighted = sum(score * values[s][channel] for s, score in enumerate(scores))
                rows[t].append(weighted / sum(scores))
    out = layer.out.weight.double()
    return [(out @ torch.tensor(row, dtype=torch.float64)).tolist() for row in rows]


def dot(a: list[float], b: list[float]) -> float:
    """Sum of products."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def probabilities(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[tuple[int, float]]:
    """The ids that may be sampled with their probabilities, likeliest first, lower id first among equals."""
    if temperature == 0:
        return [(logits.index(max(logits)), 1.0)]
    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    order = order[: top_k or len(order)]
    weights = [math.exp((logits[index] - logits[order[0]]) / temperature) for index in order]
    normalised = [weight / sum(weights) for weight in weights]
    kept, total = [], 0.0
    for index, probability in zip(order, normalised, strict=True):
        kept.append((index, probability))
        total += probability
        if total >= top_p:
            break
    return [(index, probability / total) for index, probability in kept]


def next_id(logits: list[float], uniform: float, temperature: float, top_k: int, top_p: float) -> int:
    """The first allowed id at which the cumulative probability exceeds `uniform`."""
    allowed = sorted(probabilities(logits, temperature, top_k, top_p))
    cumulative = 0.0
    for index, probability in allowed:
        cumulative += probability
        if uniform < cumulative:
            return index
    return allowed[-1][0]


@torch.no_grad()
def image_logits(transformer, ids: list[int], image_range: tuple[int, int]) -> Tensor:
    """Run the whole stream so far and take the logits of the image ids out of all logits."""
    hidden = transformer(torch.tensor([ids]))[0, -1]
    output = transformer.embed if transformer.head is None else transformer.head
    bias = getattr(output, "bias", None)
    logits = output.weight @ hidden + (0 if bias is None else bias)
    return logits[image_range[0] : image_range[1]]


def stream_ids(stream, caption: list[int]) -> list[int]:
    """BOS if there is one, caption, and each empty text position's own padding id."""
    config = stream.config
    padding = [config.text_vocab + position for position in range(len(caption), config.text_length)]
    return [*([config.bos_id] if config.bos_id >= 0 else []), *caption, *padding]


def generate(
    transformer, stream, captions: tuple[list[int], list[int]], seed: int, sampling, picture=None, redraw=None
) -> Tensor:
    """One candidate, id by id, running the whole stream for each; captions are (prompt, negative).

    Where `redraw` (h, w) is False the id is taken from `picture` (h, w).
    """
    uniforms = torch.rand(stream.image_length, generator=torch.Generator().manual_seed(seed)).tolist()
    conditional, unconditional = (stream_ids(stream, caption) for caption in captions)
    sampled = []
    for cell, uniform in enumerate(uniforms):
        logits = image_logits(transformer, conditional, stream.image_range)
        if sampling.guidance != 1:
            null = image_logits(transformer, unconditional, stream.image_range)
            logits = null + sampling.guidance * (logits - null)
        image_id = next_id(logits.tolist(), uniform, sampling.temperature, sampling.top_k, sampling.top_p)
        if redraw is not None and not redraw.flatten()[cell]:
            image_id = int(picture.flatten()[cell])
        sampled.append(image_id)
        conditional.append(stream.image_offset + image_id)
        unconditional.append(stream.image_offset + image_id)
    return torch.tensor(sampled).reshape(stream.config.grid)


def log_likelihood(transformer, stream, caption: list[int], image_ids: list[int]) -> list[float]:
    """Log-probability of each image id, running the stream before it for each."""
    ids, result = stream_ids(stream, caption), []
    for image_id in image_ids:
        logits = image_logits(transformer, ids, stream.image_range).double().tolist()
        result.append(logits[image_id] - math.log(sum(math.exp(value) for value in logits)))
        ids.append(stream.image_offset + image_id)
    return result


def nearest(vector: list[float], codebook: list[list[float]]) -> int:
    """The codebook entry at the smallest angle; the first of equals."""
    cosines = [dot(vector, entry) / math.hypot(*vector) / math.hypot(*entry) for entry in codebook]
    return cosines.index(max(cosines))


def ssim(x: Tensor, y: Tensor) -> float:
    """Structural similarity of two pictures (3, H, W) in [-1, 1], window by window."""
    x, y = (x.double() + 1) / 2, (y.double() + 1) / 2
    gauss = [math.exp(-(offset**2) / 4.5) for offset in range(-5, 6)]
    window = torch.tensor([[a * b for a in gauss] for b in gauss], dtype=torch.float64)
    window /= window.sum()
    scores = []
    for channel in range(3):
        for top in range(x.shape[1] - 10):
            for left in range(x.shape[2] - 10):
                a, b = (p[channel, top : top + 11, left : left + 11] for p in (x, y))
                mean_a, mean_b = float((window * a).sum()), float((window * b).sum())
                var_a = float((window * (a - mean_a) ** 2).sum())
                var_b = float((window * (b - mean_b) ** 2).sum())
                both = float((window * (a - mean_a) * (b - mean_b)).sum())
                light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
                scores.append(light * (2 * both + 0.03**2) / (var_a + var_b + 0.03**2))
    return sum(scores) / len(scores)


@torch.no_grad()
def text_logits(transformer, ids: list[int], stream) -> list[float]:
    """Run the whole stream so far and take the logits of text ids and padding out of all logits."""
    hidden = transformer(torch.tensor([ids]))[0, -1].double()
    output = transformer.embed if transformer.head is None else transformer.head
    return (output.weight.double() @ hidden)[: stream.image_offset].tolist()


def generate_text(transformer, stream, beginning: list[int], seed: int, sampling) -> list[int]:
    """One caption, id by id, running the stream so far for each."""
    length, vocab = stream.config.text_length, stream.config.text_vocab
    uniforms = torch.rand(length, generator=torch.Generator().manual_seed(seed)).tolist()
    text = list(beginning)
    for position in range(len(beginning), length):
        logits = text_logits(transformer, [stream.config.bos_id, *text], stream)
        choices = logits[:vocab] + [logits[vocab + position]] * (position > 0)
        text_id = next_id(choices, uniforms[position], sampling.temperature, sampling.top_k, sampling.top_p)
        if text_id == vocab:
            break
        text.append(text_id)
    return text


def text_log_likelihood(transformer, stream, caption: list[int]) -> list[float]:
    """Log-probability of each text id and padding id, running the stream before it for each."""
    ids, result = stream_ids(stream, caption), []
    for end in range(1, len(ids)):
        logits = text_logits(transformer, ids[:end], stream)
        result.append(logits[ids[end]] - math.log(sum(math.exp(value) for value in logits)))
    return result


def blind_log_likelihood(transformer, stream, caption: list[int], image_ids: list[int]) -> float:
    """Log-probability of all image ids, with BOS in place of the ids before each."""
    ids, total = stream_ids(stream, caption), 0.0
    for image_id in image_ids:
        logits = image_logits(transformer, ids, stream.image_range).double().tolist()
        total += logits[image_id] - math.log(sum(math.exp(value) for value in logits))
        ids.append(stream.config.bos_id)
    return total


def split_with_dropout(text: str, scores: dict[str, float], dropout: float, random) -> list[str]:
    """BPE with dropout: in each round every place draws a number, and the best merge not skipped is done."""
    pieces = list(text)
    while len(pieces) > 1:
        best = -1
        best_score = -math.inf
        skip = random.random(len(pieces) - 1) < dropout
        for left in range(len(pieces) - 1):
            score = scores.get(pieces[left] + pieces[left + 1])
            if score is not None and not skip[left] and score > best_score:
                best = left
                best_score = score
        if best < 0:
            break
        pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
    return pieces
