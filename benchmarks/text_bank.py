"""What should stand for a class in the embedding bank: its sentences' mean, their centre, a name?

    python benchmarks/text_bank.py text_encoder.pth BIOLORD challenge_prompts.json \
        --output benchmarks/results/text_bank [--tower]

Embeds the known sentences and tells how far apart those of a class lie (cosine to their mean) and
how near its neighbors are (cosine between the means of two classes of a modality and kind). Then
four vectors for a class are judged by the sentences of the class: the mean of its
sentences, the most central of them, the shortest of them (the bare name), and the stated sentence
"NAME in MODALITY". Distance: each sentence in turn is left out, and the squared distance from it to
what the others give is divided by its squared length. Nearest: how many sentences are nearest (by
cosine) to their own class's vector; here none is left out. `--tower` looks at the MPNet's mean
alone, without projection and modality vectors. Writes a JSON and a Markdown table. Needs the extra
`export`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from reporting import today, write_report

from medals_export.known_sentences import KnownSentences, read_sentences
from medals_export.text_encoder import TextCheckpoint, load_text_encoder
from medals_rt.common.environment import machine_facts
from medals_rt.prompts.classes import ClassKey, canonical_sentence

Embedded = dict[ClassKey, np.ndarray]
StandIn = Callable[[ClassKey, np.ndarray, tuple[str, ...]], np.ndarray]


def leave_out_tower_tail(encoder: TextCheckpoint) -> None:
    """Make the encoder give the mean of the MPNet's tokens."""
    encoder.model.projection_layer = torch.nn.Identity()
    torch.nn.init.zeros_(encoder.model.modality_embed.weight)


def stand_ins(encoder: TextCheckpoint) -> dict[str, StandIn]:
    """Return the rules that choose a class's vector."""

    def central(_key: ClassKey, vectors: np.ndarray, _texts: tuple[str, ...]) -> np.ndarray:
        return vectors[np.argmin(((vectors - vectors.mean(0)) ** 2).sum(1))]

    def shortest(_key: ClassKey, vectors: np.ndarray, texts: tuple[str, ...]) -> np.ndarray:
        return vectors[min(range(len(texts)), key=lambda place: len(texts[place]))]

    stated: dict[ClassKey, np.ndarray] = {}

    def canonical(key: ClassKey, _vectors: np.ndarray, _texts: tuple[str, ...]) -> np.ndarray:
        if key not in stated:
            stated[key] = encoder.embed([canonical_sentence(key)], key.modality)[0]
        return stated[key]

    return {
        "mean": lambda _key, vectors, _texts: vectors.mean(0),
        "most central sentence": central,
        "shortest sentence": shortest,
        "NAME in MODALITY": canonical,
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale to length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def left_out_distance(choose: StandIn, known: KnownSentences, embedded: Embedded) -> float:
    """Squared distance of a sentence to what the others of its class give, over its length's."""
    ratios = []
    for key, texts in known.by_class.items():
        for place in range(len(texts) if len(texts) > 1 else 0):
            others = [other for other in range(len(texts)) if other != place]
            found = choose(key, embedded[key][others], tuple(texts[other] for other in others))
            sentence = embedded[key][place]
            ratios.append(((sentence - found) ** 2).sum() / (sentence**2).sum())
    return float(np.mean(ratios))


def neighbors(known: KnownSentences) -> list[list[ClassKey]]:
    """Classes that can be asked for together: of one modality and kind, more than one."""
    groups: dict[tuple[str, str], list[ClassKey]] = {}
    for key in known.by_class:
        groups.setdefault((key.modality, key.kind), []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]


def nearest_share(choose: StandIn, known: KnownSentences, embedded: Embedded) -> float:
    """Share of sentences that are nearest to their own class's vector."""
    right = count = 0
    for keys in neighbors(known):
        rows = unit(np.stack([choose(k, embedded[k], known.by_class[k]) for k in keys]))
        for place, key in enumerate(keys):
            nearest = (unit(embedded[key]) @ rows.T).argmax(1)
            right += int((nearest == place).sum())
            count += len(nearest)
    return right / count


def measure(encoder: TextCheckpoint, known: KnownSentences) -> dict[str, object]:
    """Return all figures, by name."""
    embedded = {
        key: encoder.embed(texts, key.modality).astype(np.float64)
        for key, texts in known.by_class.items()
    }
    own = np.concatenate([unit(v) @ unit(v.mean(0)) for v in embedded.values()])
    other = []
    for keys in neighbors(known):
        means = unit(np.stack([embedded[key].mean(0) for key in keys]))
        cosines = means @ means.T
        np.fill_diagonal(cosines, -1)
        other.append(cosines.max(1))
    lengths = [
        np.linalg.norm(v.mean(0)) / np.linalg.norm(v, axis=1).mean() for v in embedded.values()
    ]
    return {
        "sentences": known.count,
        "classes": len(known.by_class),
        "cosine to own mean": {"mean": own.mean(), "5th percentile": np.percentile(own, 5)},
        "cosine to nearest other mean": {
            "mean": np.concatenate(other).mean(),
            "largest": np.concatenate(other).max(),
        },
        "length of mean over length of sentences": np.mean(lengths),
        "stand-ins": {
            name: {
                "left-out distance": left_out_distance(choose, known, embedded),
                "nearest to own": nearest_share(choose, known, embedded),
            }
            for name, choose in stand_ins(encoder).items()
        },
    }


def table(figures: dict[str, object]) -> str:
    """Write the vectors as Markdown."""
    lines = ["| a class is | squared distance of a sentence left out | nearest to its own |"]
    lines += ["|---|---:|---:|"]
    for name, found in figures["stand-ins"].items():
        lines.append(
            f"| {name} | {found['left-out distance']:.3f} | {found['nearest to own']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text_encoder", type=Path)
    parser.add_argument("biolord", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--output", type=Path, help="without ending; .json and .md are written")
    parser.add_argument("--tower", action="store_true", help="the MPNet alone")
    arguments = parser.parse_args()
    encoder = load_text_encoder(arguments.text_encoder, arguments.biolord)
    if arguments.tower:
        leave_out_tower_tail(encoder)
    figures = measure(encoder, read_sentences(arguments.sentences))
    figures |= {
        "date": today(),
        "machine": machine_facts(),
        "text encoder": encoder.source.file,
        "sha256": encoder.source.sha256,
        "MPNet": arguments.biolord.name,
        "tower alone": arguments.tower,
    }
    for name in ("cosine to own mean", "cosine to nearest other mean"):
        print(f"{name}:", ", ".join(f"{what} {value:.3f}" for what, value in figures[name].items()))
    print(f"length of mean: {figures['length of mean over length of sentences']:.3f}")
    if arguments.output is None:
        print(table(figures))
    else:
        write_report(arguments.output, figures, table(figures) + "\n")


if __name__ == "__main__":
    main()
