from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from precisions import assert_alike_in_bfloat16
from toy_language_model import toy_language_model

from raysys.errors import UserError
from raysys.models.lora import LoraSettings, load_base, merged, token_losses, with_lora
from raysys.models.parameters import parameters_of, trained
from raysys.models.yes_no import AnswerTokens, Question, YesNoScorer
from raysys.text.engine import tokenizer_of
from raysys.training.language_models import FinetuneSettings, YesNoTraining
from raysys.training.workers import Workers

CPU = torch.device("cpu")
SETTINGS = FinetuneSettings(learning_rate=0.01, batch_size=8, pass_tokens=100, epochs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return toy_language_model(Path(tmp_path_factory.mktemp("toy")))


def text_questions(folder: Path, n: int = 12) -> list[Question]:
    """Prompts of different lengths; yes where the last colour is the first."""
    tokenizer = tokenizer_of(str(folder), None)
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        colours = [("red", "blue"), ("blue", "red")][number % 2]
        texts = [f"{colours[0]} {'.' * int(rng.integers(1, 30))}", " red ?", " blue, too?"]
        prefix, *candidates = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
        found.append(Question(prefix, candidates, 0 if colours[0] == "red" else 1))
    return found


def prompts_of(folder: Path, questions: list[Question]) -> list[list[int]]:
    """Whole prompts with their answers, one by one."""
    tokenizer = tokenizer_of(str(folder), None)
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("No", "Yes")]
    return [
        [*question.prefix, *tokens, words[place == question.target]]
        for question in questions
        for place, tokens in enumerate(question.candidates)
    ]


def training(folder: Path, workers: Workers | None = None, **changes) -> YesNoTraining:
    settings = SETTINGS.model_copy(update=changes)
    model = with_lora(load_base(str(folder), None, CPU), settings.lora, settings.seed)
    answers = AnswerTokens.of(tokenizer_of(str(folder), None))
    questions = text_questions(folder)
    return YesNoTraining(model, questions, questions[:4], answers, settings, 0, 64, workers)


def arrays(one: YesNoTraining) -> dict[str, np.ndarray]:
    return parameters_of(one.model)


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray], atol: float) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_allclose(array, right[name], atol=atol, err_msg=name)


def test_only_the_adapters_are_trained_and_start_as_nothing(folder):
    base = load_base(str(folder), None, CPU)
    ids = torch.tensor(prompts_of(folder, text_questions(folder))[:1])
    before = base(ids).logits
    model = with_lora(base, LoraSettings(), seed=1)
    torch.testing.assert_close(model.eval()(ids).logits, before)
    names = trained(model)
    assert len(names) == 2 * 4 * 2, "A and B of four projections in two layers"
    assert all("lora_" in name for name in names)


def test_a_step_is_one_step_of_adamw_on_the_mean_loss_of_a_token(folder):
    ours = training(folder, loss="prompt", clip=1e9)
    ours.model.eval()  # no dropout: both see the same
    ours.model.train = lambda mode=True: ours.model
    reference = training(folder)
    model = reference.model.eval()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.01, weight_decay=0.0)
    rows = [row for rows in ours.passes() for row in rows]
    assert len(rows) == 4, "8 prompts, two of each question"
    total, tokens = torch.zeros(()), 0
    for prompt in prompts_of(folder, rows):
        ids = torch.tensor([prompt])
        logits = model(ids).logits[0, :-1].log_softmax(dim=-1)
        total = total - logits.gather(1, ids[0, 1:, None]).sum()
        tokens += ids.shape[1] - 1
    (total / tokens).backward()
    optimizer.step()
    ours.train_step()
    assert ours.loss == pytest.approx((total / tokens).item(), rel=1e-5)
    assert_same(arrays(ours), parameters_of(model), 2e-5)


def test_the_loss_of_the_answer_alone(folder):
    ours = training(folder, loss="answer", lora=LoraSettings(dropout=0.0))
    prompts = prompts_of(folder, [row for rows in ours.passes() for row in rows])
    wanted = 0.0
    for prompt in prompts:
        logits = ours.model(torch.tensor([prompt])).logits[0, -2].log_softmax(dim=-1)
        wanted -= logits[prompt[-1]].item()
    ours.train_step()
    assert ours.loss == pytest.approx(wanted / len(prompts), rel=1e-5)


def test_chunks_of_logits_sum_up_to_the_whole(monkeypatch):
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 11, bias=False)
    hidden = torch.randn(23, 6, requires_grad=True)
    labels = torch.randint(11, (23,))
    weights = torch.randint(3, (23,)).float()
    each = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="none")
    whole = (each * weights).sum()
    (wanted,) = torch.autograd.grad(whole, hidden)
    monkeypatch.setattr("raysys.models.lora._CHUNK", 5)
    found = token_losses(hidden, labels, weights, head)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found, hidden)[0], wanted)


@pytest.mark.parametrize("loss", ["prompt", "answer"])
def test_bucketing_and_the_size_of_passes_change_the_speed_alone(folder, loss):
    same = {"lora": LoraSettings(dropout=0.0), "loss": loss}
    wanted = training(folder, **same)
    others = [
        training(folder, bucketing=False, **same),
        training(folder, pass_tokens=1, **same),
        training(folder, gradient_checkpointing=True, **same),
    ]
    lengths = [row.length for rows in wanted.passes() for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(one.passes()) for one in others[:2]] == [8, 4]
    for _ in range(3):
        wanted.train_step()
    for other in others:
        for _ in range(3):
            other.train_step()
        assert_same(arrays(other), arrays(wanted), 1e-4)
        assert other.history[0] == pytest.approx(wanted.history[0])


def test_every_question_is_seen_once_an_epoch(folder):
    one = training(folder)
    seen = []
    for _ in range(one.steps):
        seen += [row.prefix for rows in one.passes() for row in rows]
        one.step += 1
    assert sorted(seen) == sorted(question.prefix for question in text_questions(folder))


def test_the_same_seed_gives_the_same_adapters(folder):
    first, second, third = training(folder), training(folder), training(folder, seed=1)
    for one in (first, second, third):
        one.run()
    assert_same(arrays(first), arrays(second), 0)
    assert any((arrays(first)[name] != array).any() for name, array in arrays(third).items())
    assert first.history == second.history


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(folder, tmp_path, stop):
    whole, begun, resumed = training(folder), training(folder), training(folder)
    whole.run()
    for _ in range(stop):
        begun.train_step()
    begun.save(tmp_path)
    resumed.load(tmp_path)
    resumed.run()
    assert_same(arrays(resumed), arrays(whole), 0)
    assert (resumed.history, resumed.best_epoch) == (whole.history, whole.best_epoch)
    resumed.restore_best()
    whole.restore_best()
    assert_same(arrays(resumed), arrays(whole), 0)


def test_training_learns_what_the_prompts_say(folder):
    one = training(folder, epochs=20, patience=20, loss="answer", learning_rate=0.02)
    one.run()
    losses = [row["loss"] for row in one.history]
    assert losses[-1] < 0.75 * losses[0]


def test_the_best_epoch_is_kept_and_patience_ends_the_run(folder, monkeypatch):
    found = iter([0.5, 0.7, 0.6, 0.6, 0.9])
    monkeypatch.setattr(YesNoTraining, "validate", lambda self: next(found))
    one = training(folder, epochs=9, patience=2)
    kept = []
    one.run(lambda now: kept.append(arrays(now)) if now.step == 0 else None)
    assert (one.epoch, one.best_epoch, one.best) == (4, 2, 0.7)
    one.restore_best()
    assert_same(arrays(one), kept[1], 0)


def test_merged_weights_score_like_adapters(folder, tmp_path):
    one = training(folder)
    one.run()
    one.model.save_pretrained(str(tmp_path / "adapter"))
    plain = merged(load_base(str(folder), None, CPU), tmp_path / "adapter")
    answers = AnswerTokens.of(tokenizer_of(str(folder), None))
    prompts = [prompt[:-1] for prompt in prompts_of(folder, text_questions(folder))]
    scores = [YesNoScorer(model, answers, 0).plain(prompts) for model in (plain, one.model)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=0)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    other = toy_language_model(tmp_path / "other", width=16)
    with pytest.raises(UserError, match="does not fit this base model"):
        merged(load_base(str(other), None, CPU), tmp_path / "adapter")


def test_layers_that_are_not_there_are_told(folder):
    with pytest.raises(UserError, match=r"no layer c_attn.*down_proj.*q_proj"):
        with_lora(load_base(str(folder), None, CPU), LoraSettings(modules=("c_attn",)), 0)


def test_a_loss_that_is_not_a_number_is_told(folder):
    one = training(folder)
    with torch.no_grad():
        next(iter(trained(one.model).values())).fill_(float("nan"))
    with pytest.raises(UserError, match="loss is not finite in epoch 1"):
        one.train_step()


def test_nothing_to_learn_from_is_told(folder):
    with pytest.raises(UserError, match="no training example"):
        YesNoTraining(None, [], [], AnswerTokens((1,), (2,)), SETTINGS, 0, 64)


def test_bfloat16_trains_alike(folder, monkeypatch):
    assert_alike_in_bfloat16(lambda: training(folder), monkeypatch)
