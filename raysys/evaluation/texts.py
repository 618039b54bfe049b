"""How near written texts are to reference texts, by torchmetrics, and how distinct they are."""

from __future__ import annotations

from collections.abc import Sequence


def text_metrics(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Figures of all texts together (ELMRec's explanation task, after POD).

    Args:
        written: n texts.
        references: n texts, one for each.

    Returns:
        `bleu@1`, `bleu@4` (of the corpus), `rouge1`, `rouge2`, `rougeL` (F1, mean over texts), all
        from 0 to 1; `distinct@1`, `distinct@2`: different n-grams as a share of all; `unique`:
        different texts as a share of all.

    Raises:
        ValueError: no texts, or not as many as references.
    """
    from torchmetrics.functional.text import bleu_score, rouge_score

    if not written or len(written) != len(references):
        raise ValueError(f"{len(written)} texts and {len(references)} references")
    single = [[reference] for reference in references]
    found = {f"bleu@{n}": float(bleu_score(list(written), single, n_gram=n)) for n in (1, 4)}
    rouge = rouge_score(list(written), list(references), rouge_keys=("rouge1", "rouge2", "rougeL"))
    found |= {name: float(rouge[f"{name}_fmeasure"]) for name in ("rouge1", "rouge2", "rougeL")}
    found |= {f"distinct@{n}": distinct(written, n) for n in (1, 2)}
    return {**found, "unique": len(set(written)) / len(written)}


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words as a share of all n-grams; 0 where there are none."""
    grams = [
        tuple(words[place : place + n])
        for words in (text.split() for text in texts)
        for place in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
