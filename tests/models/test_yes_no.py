from __future__ import annotations

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from raysys.errors import UserError
from raysys.models.yes_no import AnswerTokens, Question, YesNoScorer, pack, paper_eq3

ANSWERS = AnswerTokens(yes=(5, 6), no=(7,))
PREFIX, CANDIDATES = [3, 9, 4, 1, 8, 12, 30], [[2, 5, 7], [11], [13, 14, 15, 16, 17], [2, 5, 8]]


class Words:
    """A tokeniser that knows some words as one token and splits the rest into letters."""

    def __init__(self, *known: str) -> None:
        self._known = {word: place for place, word in enumerate(known)}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self._known[text]] if text in self._known else [ord(letter) for letter in text]


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def by_hand(model, prompt: list[int]) -> float:
    """The definition: one prompt, all logits, no padding, no cache."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    yes = math.log(sum(math.exp(logits[token]) for token in ANSWERS.yes))
    return yes - float(logits[ANSWERS.no[0]])


def test_every_path_gives_the_score_of_the_definition(model):
    scorer = YesNoScorer(model, ANSWERS, pad_id=0)
    prompts = [PREFIX + candidate for candidate in CANDIDATES]
    wanted = torch.tensor([by_hand(model, prompt) for prompt in prompts])
    assert wanted.std() > 1e-3, "the scores do not tell the candidates apart"
    for found in (
        scorer.plain(prompts, "right"),
        scorer.plain(prompts, "left"),
        scorer.shared(PREFIX, CANDIDATES),
        torch.cat([scorer.shared(PREFIX, [candidate]) for candidate in CANDIDATES]),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=1e-4)


def test_with_adapters(model):
    from peft import LoraConfig, get_peft_model

    names = ["c_attn"] if isinstance(model, GPT2LMHeadModel) else ["q_proj", "v_proj"]
    plain = YesNoScorer(model, ANSWERS, 0).shared(PREFIX, CANDIDATES)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    scorer = YesNoScorer(tuned, ANSWERS, 0)
    found = scorer.shared(PREFIX, CANDIDATES)
    assert not torch.allclose(found, plain, atol=1e-3), "the adapter makes no difference"
    prompts = [PREFIX + candidate for candidate in CANDIDATES]
    torch.testing.assert_close(found, scorer.plain(prompts), atol=1e-5, rtol=1e-4)


def test_answer_tokens_are_all_single_forms():
    found = AnswerTokens.of(Words("Yes", " yes", "NO", "no", "maybe"))
    assert found == AnswerTokens(yes=(0, 1), no=(3, 2))


def test_a_tokeniser_without_an_answer_is_refused():
    with pytest.raises(UserError, match="no single token for 'no'"):
        AnswerTokens.of(Words("yes"))


def test_equation_3_cannot_leave_its_narrow_band():
    """The largest difference of two probabilities is 1: e / (e + 1) = .731."""
    found = paper_eq3(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.7310586, 0.5, 0.2689414]))


def test_many_candidates_take_several_rows(model, monkeypatch):
    scorer = YesNoScorer(model, ANSWERS, pad_id=0)
    wanted = scorer.shared(PREFIX, CANDIDATES)
    monkeypatch.setattr("raysys.models.yes_no._ROW_TOKENS", 4)
    torch.testing.assert_close(scorer.shared(PREFIX, CANDIDATES), wanted, atol=1e-5, rtol=0)


def test_packed_rows_predict_like_prompts_one_by_one(model):
    questions = [
        Question(PREFIX, CANDIDATES[:3], 1),
        Question(PREFIX[:2], CANDIDATES[2:], -1),
    ]
    packed = pack(questions, ANSWERS, pad_id=0, width=24)
    with torch.no_grad():
        hidden = model.base_model(
            input_ids=packed.ids,
            attention_mask=packed.mask(torch.float32),
            position_ids=packed.positions,
        ).last_hidden_state
    logits = model.get_output_embeddings()(hidden).flatten(0, 1)[packed.sources]
    losses = -logits.log_softmax(dim=-1).gather(1, packed.labels[:, None])[:, 0].detach()
    wanted, answers = 0.0, []
    for question in questions:
        for place, candidate in enumerate(question.candidates):
            ids = [*question.prefix, *candidate, ANSWERS.say(place == question.target)]
            with torch.no_grad():
                alone = model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
            each = -alone.gather(1, torch.tensor(ids)[1:, None])[:, 0]
            wanted += float(each.sum())
            answers.append(float(each[-1]))
    assert float(losses @ packed.weights) == pytest.approx(wanted, rel=1e-5)
    assert losses[packed.is_answer].tolist() == pytest.approx(answers, abs=1e-5)
    assert packed.labels[packed.is_answer].tolist() == [7, 5, 7, 7, 7]


def test_a_question_taken_apart():
    question = Question([1, 2], [[3], [4, 5]], 1)
    assert question.length == 5
    assert question.alone() == [Question([1, 2], [[3]], -1), Question([1, 2], [[4, 5]], 0)]
