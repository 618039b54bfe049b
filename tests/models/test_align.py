from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_models import (
    ITEMS,
    USERS,
    generator,
    toy_batch,
    toy_model,
    toy_profiles,
    toy_settings,
    toy_train,
)

from raysys.errors import UserError
from raysys.graph.bipartite import bipartite_graph
from raysys.graph.propagation import drop_edges
from raysys.models.aligned import Aligned, matmul_type
from raysys.models.base import Batch, Recommender
from raysys.models.contrastive import Contrastive
from raysys.models.generative import GenerativeAlignment
from raysys.models.profiles import Profiles
from raysys.models.registry import ModelSettings, build_model
from raysys.settings import parse_settings

LEAKY = 0.01


def rlmrec_losses(
    model: Contrastive, keep: torch.Tensor, denominator: str, symmetric: bool
) -> dict[str, torch.Tensor]:
    """RLMRec's released loss written out densely; `keep` is the (N, N) dropped adjacency.

    No unique rows, no counts, no blocks: every duplicate of the batch is its own row.
    """
    batch, backbone = toy_batch(), model.backbone
    x0 = backbone.nodes
    x1 = keep @ x0
    final = x0 + x1 + keep @ x1
    users, items = final[:USERS], final[USERS:]
    difference = (users[batch.users] * (items[batch.positives] - items[batch.negatives])).sum(1)
    named = {"bpr": -torch.nn.functional.logsigmoid(difference).mean()}

    first, _, second = model.mlp
    profiles, train = toy_profiles(), toy_train().toarray()

    def text(matrix: np.ndarray) -> torch.Tensor:
        hidden = torch.from_numpy(np.nan_to_num(matrix)) @ first.weight.T + first.bias
        return torch.where(hidden > 0, hidden, LEAKY * hidden) @ second.weight.T + second.bias

    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / (1e-8 + x.square().sum(1, keepdim=True)).sqrt()

    def info_nce(
        e: torch.Tensor, t: torch.Tensor, everything: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        e, t, everything = unit(e), unit(t), unit(everything)
        exponentials = torch.exp(e @ everything.T / 0.2) * weights
        return (exponentials.sum(1).log() - (e * t).sum(1) / 0.2).sum()

    def side(
        e: torch.Tensor, t: torch.Tensor, has: np.ndarray, nodes: torch.Tensor, role: str
    ) -> torch.Tensor:
        nodes = nodes[torch.from_numpy(has)[nodes]]
        keys, weights = nodes, torch.ones(len(nodes))
        if role == "user" and denominator in ("rlmrec", "distinct"):
            keys = torch.from_numpy(np.flatnonzero(has))
            weights = torch.ones(len(keys))
        elif denominator == "distinct":
            keys = nodes.unique()
            weights = torch.ones(len(keys))
        elif denominator == "sampled":
            degrees = {"user": train.sum(1), "positive": train.sum(0)}
            chance = degrees[role] / train.sum() if role in degrees else np.full(ITEMS, 1 / ITEMS)
            weights = 1 / (len(batch) * torch.from_numpy(chance).float()[nodes])
        there = info_nce(e[nodes], t[nodes], t[keys], weights)
        back = info_nce(t[nodes], e[nodes], e[keys], weights)
        return (there + back) / 2 if symmetric else there

    user_text, item_text = text(profiles.users), text(profiles.items)
    total = (
        side(users, user_text, profiles.user_has_profile, batch.users, "user")
        + side(items, item_text, profiles.item_has_profile, batch.positives, "positive")
        + side(items, item_text, profiles.item_has_profile, batch.negatives, "negative")
    )
    named["align"] = 0.3 * total / len(batch)
    named["reg"] = 1e-3 * sum((w**2).sum() for w in model.parameters())
    return named


DENOMINATORS = pytest.mark.parametrize("denominator", ["rlmrec", "distinct", "in_batch", "sampled"])


@pytest.mark.parametrize("symmetric", [False, True])
@DENOMINATORS
def test_one_adam_step_equals_the_dense_reference(denominator: str, symmetric: bool) -> None:
    settings = toy_settings(denominator=denominator, symmetric=symmetric)
    ours, reference = toy_model(settings), toy_model(settings)
    keep = drop_edges(reference.graph, 0.8, generator()).forward.to_dense()
    after = []
    for model, named in (
        (ours, ours.losses(toy_batch(), generator())),
        (reference, rlmrec_losses(reference, keep, denominator, symmetric)),
    ):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        optimizer.zero_grad()
        sum(named.values()).backward()
        optimizer.step()
        after.append(
            {name: loss.item() for name, loss in named.items()}
            | {name: w.grad.clone() for name, w in model.named_parameters()}
            | {f"new {name}": w.detach().clone() for name, w in model.named_parameters()}
        )
    torch.testing.assert_close(after[0], after[1], rtol=2e-4, atol=2e-6)


@DENOMINATORS
@pytest.mark.parametrize("workers", [2, 3, 16])
def test_shares_add_up_to_the_whole_batch(denominator: str, workers: int) -> None:
    model = toy_model(toy_settings(denominator=denominator))

    def gradients(batches: list[Batch]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        totals: dict[str, float] = {}
        for batch in batches:
            named = model.losses(batch, generator())
            sum(named.values()).backward()
            for name, loss in named.items():
                totals[name] = totals.get(name, 0.0) + loss.item()
        return totals | {name: w.grad.clone() for name, w in model.named_parameters()}

    whole = gradients([toy_batch()])
    shares = gradients([toy_batch(worker, workers) for worker in range(workers)])
    torch.testing.assert_close(shares, whole, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_every_parameter() -> None:
    model = toy_model()
    named = model.losses(toy_batch(), generator())
    del named["reg"]  # it reaches every parameter by definition
    sum(named.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_contrastive_weight_zero_is_the_backbone_alone_and_needs_no_texts() -> None:
    off, alone = toy_settings(kd_weight=0.0), toy_model(toy_settings(aligned=False))
    assert not off.reads_profiles()
    bare = build_model(off, bipartite_graph(toy_train()), None, seed=0)
    assert not isinstance(bare, Aligned)
    # What the aligned model's own backbone starts from, too: the MLP is drawn after it.
    aligned = build_model(toy_settings(), bipartite_graph(toy_train()), toy_profiles(), seed=0)
    assert torch.equal(bare.initial_embeddings(), aligned.initial_embeddings())
    ours, theirs = bare.losses(toy_batch(), generator()), alone.losses(toy_batch(), generator())
    assert ours.keys() == theirs.keys()


def test_reconstruction_weight_zero_keeps_the_hiding() -> None:
    def losses(weight: float, mask: float) -> dict[str, torch.Tensor]:
        alignment = GenerativeAlignment(kind="gen", recon_weight=weight, mask_ratio=mask)
        model = toy_model(toy_settings().model_copy(update={"alignment": alignment}))
        return model.losses(toy_batch(), generator())

    off, on, other = losses(0.0, 0.5), losses(1.0, 0.5), losses(1.0, 0.1)
    assert off["align"] == 0 < on["align"]
    assert off["bpr"] == on["bpr"] != other["bpr"]


@pytest.mark.parametrize("nodes", [2, 4, 1000])
def test_a_sample_of_the_hidden_nodes_is_reconstructed(nodes: int) -> None:
    def model(recon_nodes: int | None) -> Recommender:
        alignment = GenerativeAlignment(
            kind="gen", mask_ratio=0.4, recon_nodes=recon_nodes, matmul="float32"
        )
        return toy_model(toy_settings().model_copy(update={"alignment": alignment}))

    some, every = model(nodes), model(None)
    encoded, whole = (m.encode(m.initial_embeddings(), generator()) for m in (some, every))
    torch.testing.assert_close(encoded.start, whole.start)  # as many are hidden
    asked = encoded.masked
    assert len(asked) == min(nodes, len(whole.masked)) == len(asked.unique())
    assert set(asked.tolist()) <= set(whole.masked.tolist())

    # The loss by hand; users and then items that have a profile are numbered in a row.
    profiles = toy_profiles()
    texts = np.concatenate(
        [profiles.users[profiles.user_has_profile], profiles.items[profiles.item_has_profile]]
    )[asked]
    rows = np.concatenate([profiles.user_has_profile, profiles.item_has_profile]).nonzero()[0]
    outputs = torch.cat([encoded.users, encoded.items])[torch.from_numpy(rows)[asked]]
    unit = torch.nn.functional.normalize
    cosines = unit(some.mlp(outputs)) @ unit(torch.tensor(texts)).T / 0.5
    expected = 0.1 * (cosines.logsumexp(dim=1) - cosines.diagonal()).mean()
    found = some.alignment(encoded, toy_batch())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    parts = [some.alignment(encoded, toy_batch(worker, 3)) for worker in range(3)]
    torch.testing.assert_close(sum(parts), expected, rtol=1e-4, atol=1e-6)


def test_a_config_without_a_kind_means_contrastive() -> None:
    assert isinstance(toy_model(), Contrastive)
    settings = parse_settings(
        ModelSettings, {"alignment": {"kind": "gen", "mask_ratio": 0.3}}, source="here"
    )
    assert isinstance(settings.alignment, GenerativeAlignment)
    with pytest.raises(UserError, match=r"mask_ration'.*did you mean 'mask_ratio'"):
        parse_settings(
            ModelSettings, {"alignment": {"kind": "gen", "mask_ration": 0.3}}, source="here"
        )
    with pytest.raises(UserError, match=r"here: key 'alignment'.*'con', 'gen'"):
        parse_settings(ModelSettings, {"alignment": {"kind": "ge"}}, source="here")


def test_pca_narrows_the_vectors_before_training() -> None:
    model = toy_model(toy_settings(pca=4))
    assert isinstance(model, Contrastive)
    assert model.mlp[0].in_features == 4


def test_null_profiles_are_counted_and_their_vectors_never_read() -> None:
    model = toy_model()
    assert isinstance(model, Aligned)
    assert (model.null_users, model.null_items) == (1, 1)
    clean = toy_profiles(nulls=False)
    masks = np.ones(USERS, dtype=bool), np.ones(ITEMS, dtype=np.uint8)
    masks[0][3] = masks[1][5] = 0
    masked = build_model(
        toy_settings(),
        bipartite_graph(toy_train()),
        Profiles.of(clean.users, clean.items, *masks),
        seed=0,
    )
    torch.testing.assert_close(
        model.losses(toy_batch(), generator()), masked.losses(toy_batch(), generator())
    )


def test_batch_without_any_profile() -> None:
    model = toy_model()
    named = model.losses(
        Batch(torch.tensor([3]), torch.tensor([5]), torch.tensor([5])), generator()
    )
    sum(named.values()).backward()
    assert named["align"] == 0


def test_bfloat16_is_close_to_float32() -> None:
    exact = toy_model().losses(toy_batch(), generator())["align"]
    rough = toy_model(toy_settings(matmul="bfloat16")).losses(toy_batch(), generator())["align"]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()
    assert matmul_type("float32", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("kind", ["con", "gen"])
def test_nothing_to_align_with_is_said(kind):
    nothing = Profiles.of(np.full((USERS, 4), np.nan), np.full((ITEMS, 4), np.nan))
    settings = ModelSettings(alignment={"kind": kind})
    with pytest.raises(UserError, match="nothing to align with"):
        build_model(settings, bipartite_graph(toy_train()), nothing, 0)
