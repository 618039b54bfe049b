"""What every backbone must do, alone and aligned, and each one's loss written out densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from toy_models import ITEMS, USERS, WIDTH, generator, toy_batch, toy_profiles, toy_train

from raysys.graph.bipartite import bipartite_graph
from raysys.graph.propagation import drop_edges
from raysys.models.align import ContrastiveAlignment
from raysys.models.base import Recommender
from raysys.models.registry import BACKBONES, ModelSettings, build_model
from raysys.models.saved import Embeddings, load_model, restore_model, save_model
from raysys.training.loop import GraphTraining, TrainSettings

TEMPERATURE = 0.2
EVERY = pytest.mark.parametrize(
    ("name", "aligned"), [(name, aligned) for name in BACKBONES for aligned in (False, True)]
)


def settings(name: str, aligned: bool) -> ModelSettings:
    return ModelSettings(
        backbone=name,
        settings={"width": WIDTH, "layers": 2, "reg": 1e-3},
        alignment=ContrastiveAlignment(kd_weight=0.3, matmul="float32") if aligned else None,
    )


def model_of(name: str, aligned: bool, seed: int = 0, train: csr_matrix | None = None):
    graph = bipartite_graph(toy_train() if train is None else train)
    return build_model(settings(name, aligned), graph, toy_profiles(), seed)


def total(model: Recommender, batch=None) -> torch.Tensor:
    return torch.stack(list(model.losses(batch or toy_batch(), generator()).values())).sum()


@EVERY
def test_shapes_and_finite_scores_for_users_without_history(name, aligned):
    train = toy_train().toarray()
    train[4] = 0
    model = model_of(name, aligned, train=csr_matrix(train))
    users, items = model.final_embeddings()
    assert users.shape == (USERS, model.width)
    assert items.shape == (ITEMS, model.width)
    assert np.isfinite(Embeddings.of(model).score_block(np.array([4]))).all()


@EVERY
def test_the_seed_decides_everything(name, aligned):
    same, again, other = (model_of(name, aligned, seed) for seed in (1, 1, 2))
    assert total(same) == total(again)
    assert total(same) != total(other)


@EVERY
def test_gradients_reach_every_parameter_and_workers_make_up_the_whole(name, aligned):
    whole, parts = model_of(name, aligned), model_of(name, aligned)
    total(whole).backward()
    for worker in range(3):
        total(parts, toy_batch(worker, 3)).backward()
    for (key, parameter), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert parameter.grad.abs().sum() > 0, key
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)


@EVERY
def test_saved_and_loaded_it_scores_the_same(name, aligned, tmp_path):
    model = model_of(name, aligned, seed=3)
    save_model(tmp_path / "m", model, settings(name, aligned))
    rows = np.arange(USERS)
    scores = Embeddings.of(model).score_block(rows)
    assert np.array_equal(load_model(tmp_path / "m").score_block(rows), scores)
    restored = restore_model(tmp_path / "m", bipartite_graph(toy_train()), toy_profiles())
    assert np.array_equal(Embeddings.of(restored).score_block(rows), scores)


@EVERY
def test_training_lowers_the_loss(name, aligned):
    training = GraphTraining(
        model_of(name, aligned), toy_train(), None, TrainSettings(epochs=30, batch_size=64)
    )
    training.run()
    losses = [row["loss"] for row in training.history]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def dense_info_nce(first: torch.Tensor, second: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Σ over rows, duplicates kept: every row against all of `second`."""
    first = first[rows] / first[rows].norm(dim=1, keepdim=True)
    keys = second / second.norm(dim=1, keepdim=True)
    scores = first @ keys.T / TEMPERATURE
    return torch.nn.functional.cross_entropy(scores, rows, reduction="sum")


def dense_bpr(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    batch = toy_batch()
    difference = (users[batch.users] * (items[batch.positives] - items[batch.negatives])).sum(1)
    return -torch.nn.functional.logsigmoid(difference).mean()


def dense_losses(name: str, model: Recommender) -> dict[str, torch.Tensor]:
    """The released losses with dense matrices; random draws are taken in the model's order."""
    graph, batch, x = model.graph, toy_batch(), model.nodes
    full, draws = graph.matrix().to_dense(), generator()

    def layer_sum(adjacency: torch.Tensor) -> torch.Tensor:
        return x + adjacency @ x + adjacency @ (adjacency @ x)

    def view() -> torch.Tensor:
        if name == "sgl":
            return layer_sum(drop_edges(graph, 0.8, draws).forward.to_dense())
        layers = [x]
        for _ in range(2):
            clean = full @ layers[-1]
            noise = torch.rand(clean.shape, generator=draws)
            noise = noise / noise.norm(dim=1, keepdim=True)
            layers.append(clean + 0.9 * noise * torch.sign(clean))
        return sum(layers)

    named = {"reg": 1e-3 * x.square().sum()}
    if name == "lightgcn":
        final = layer_sum(drop_edges(graph, 0.8, draws).forward.to_dense())
    elif name == "gccf":
        looped = (full != 0).float() + torch.eye(graph.nodes)
        scale = looped.sum(1).rsqrt()
        looped = scale[:, None] * looped * scale
        final = torch.cat([x, looped @ x, looped @ (looped @ x)], dim=1)
    else:
        final = layer_sum(full)
        first, second = view(), view()
        items = [batch.positives] + ([batch.negatives] if name == "sgl" else [])
        sums = dense_info_nce(first[:USERS], second[:USERS], batch.users)
        for rows in items:
            sums = sums + dense_info_nce(first[USERS:], second[USERS:], rows)
        named["contrast"] = 0.1 * sums / len(batch)
    named["bpr"] = dense_bpr(final[:USERS], final[USERS:])
    return named


@pytest.mark.parametrize("name", BACKBONES)
def test_one_optimiser_step_equals_the_dense_reference(name):
    ours, reference = model_of(name, False), model_of(name, False)
    found = ours.losses(toy_batch(), generator())
    expected = dense_losses(name, reference)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)
    for model, losses in ((ours, found), (reference, expected)):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    torch.testing.assert_close(ours.nodes, reference.nodes, rtol=1e-4, atol=1e-5)
