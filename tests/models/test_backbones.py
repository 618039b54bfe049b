"""What every backbone must do, alone and aligned, and each one's loss written out densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from toy_models import ITEMS, USERS, WIDTH, generator, toy_batch, toy_profiles, toy_train

from raysys.graph.bipartite import bipartite_graph
from raysys.graph.propagation import drop_edges
from raysys.models.base import Recommender
from raysys.models.contrastive import ContrastiveAlignment
from raysys.models.generative import GenerativeAlignment
from raysys.models.registry import BACKBONES, ModelSettings, build_model
from raysys.models.saved import Embeddings, load_model, restore_model, save_model
from raysys.schema import DISLIKED
from raysys.training.loop import GraphTraining, TrainSettings

TEMPERATURE = 0.2
EVERY = pytest.mark.parametrize(
    ("name", "aligned"),
    [(name, aligned) for name in BACKBONES for aligned in ("none", "con", "gen")],
)
ALIGNMENTS = {
    "none": None,
    "con": ContrastiveAlignment(kd_weight=0.3, matmul="float32"),
    "gen": GenerativeAlignment(
        kind="gen", recon_weight=0.3, mask_ratio=0.25, temperature=TEMPERATURE, matmul="float32"
    ),
}
#: So small a graph is hidden whole, or nearly so, with the usual numbers.
SPECIAL = {
    "autocf": {"heads": 3, "seeds": 1, "mask_depth": 2},
    "dccf": {"intents": 5},
    "gat": {"heads": 2, "dropout": 0.2},
}


def toy_others() -> dict[int, csr_matrix]:
    """Each user dislikes an item of the other group."""
    users = np.arange(USERS)
    items = (users + 1) % 2 + 2 * (users % 5)
    return {DISLIKED: csr_matrix((np.ones(USERS), (users, items)), shape=(USERS, ITEMS))}


def settings(name: str, aligned: str) -> ModelSettings:
    return ModelSettings(
        backbone=name,
        settings={"width": WIDTH, "layers": 2, "reg": 1e-3, **SPECIAL.get(name, {})},
        alignment=ALIGNMENTS[aligned],
    )


def model_of(name: str, aligned: str, seed: int = 0, train: csr_matrix | None = None):
    graph = bipartite_graph(toy_train() if train is None else train)
    return build_model(settings(name, aligned), graph, toy_profiles(), seed, toy_others())


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
    # By definition `reg` reaches every parameter, so it would hide what the losses miss.
    whole.reg = parts.reg = 0.0
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
    restored = restore_model(
        tmp_path / "m", bipartite_graph(toy_train()), toy_profiles(), toy_others()
    )
    assert np.array_equal(Embeddings.of(restored).score_block(rows), scores)


@EVERY
def test_training_lowers_the_loss(name, aligned):
    training = GraphTraining(
        model_of(name, aligned), toy_train(), None, TrainSettings(epochs=30, batch_size=64)
    )
    training.run()
    losses = [row["loss"] for row in training.history]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (1e-8 + x.square().sum(1, keepdim=True)).sqrt()


def dense_info_nce(queries, targets, keys, temperature: float = TEMPERATURE) -> torch.Tensor:
    scores = torch.exp(unit(queries) @ unit(keys).T / temperature).sum(1).log()
    return (scores - (unit(queries) * unit(targets)).sum(1) / temperature).sum()


def dense_bpr(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    batch = toy_batch()
    difference = (users[batch.users] * (items[batch.positives] - items[batch.negatives])).sum(1)
    return -torch.nn.functional.logsigmoid(difference).mean()


class Dense:
    """Each backbone's released loss with dense matrices; draws are taken in the model's order."""

    def __init__(self, model: Recommender, x: torch.Tensor, draws: torch.Generator) -> None:
        self.model, self.x, self.draws = model, x, draws
        self.full = model.graph.matrix().to_dense()
        self.ones = (self.full != 0).float()
        self.batch = toy_batch()

    def sides(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return nodes[:USERS], nodes[USERS:]

    def layer_sum(self, adjacency: torch.Tensor) -> torch.Tensor:
        return self.x + adjacency @ self.x + adjacency @ (adjacency @ self.x)

    def lightgcn(self):
        dropped = drop_edges(self.model.graph, 0.8, self.draws).forward.to_dense()
        final = self.layer_sum(dropped)
        return final, {"bpr": dense_bpr(*self.sides(final))}

    def gccf(self):
        looped = self.ones + torch.eye(len(self.x))
        scale = looped.sum(1).rsqrt()
        looped = scale[:, None] * looped * scale
        entries = self.ones.nonzero(as_tuple=True)
        kept = torch.zeros_like(looped)
        kept[entries] = (torch.rand(len(entries[0]), generator=self.draws) < 0.8).float()
        kept += torch.diag((torch.rand(len(self.x), generator=self.draws) < 0.8).float())
        looped = looped * kept
        final = torch.cat([self.x, looped @ self.x, looped @ (looped @ self.x)], dim=1)
        return final, {"bpr": dense_bpr(*self.sides(final))}

    def gat(self):
        """GATv2 over all pairs of nodes, those without an edge at -inf before the softmax."""
        model, x = self.model, self.x
        signs = self.ones.clone()
        disliked = torch.from_numpy(toy_others()[DISLIKED].toarray()).nonzero()
        for user, item in disliked.tolist():
            signs[user, USERS + item] = signs[USERS + item, user] = -1.0
        for place, (layer, norm) in enumerate(zip(model.attentions, model.norms, strict=True)):
            x = x * (torch.rand(x.shape, generator=self.draws) >= 0.2) / 0.8
            heads, width = layer.shape
            source = (x @ layer.source.T + layer.source_bias).view(-1, heads, width)
            target = (x @ layer.target.T + layer.target_bias).view(-1, heads, width)
            edge = signs[:, :, None, None] * layer.mark
            mixed = torch.nn.functional.leaky_relu(target[:, None] + source[None] + edge, 0.2)
            summed = (mixed * layer.attention).sum(-1)
            scores = summed.masked_fill(signs[:, :, None] == 0, -torch.inf)
            weights = torch.softmax(scores, dim=1).nan_to_num()
            entries = signs.nonzero(as_tuple=True)
            drawn = torch.rand(len(entries[0]), heads, generator=self.draws)
            kept = torch.zeros_like(weights)
            kept[entries] = (drawn >= 0.1).float() / 0.9
            weights = weights * kept
            summed = torch.einsum("ijh,jhw->ihw", weights, source).flatten(1)
            spread = summed.var(1, unbiased=False, keepdim=True)
            out = (summed - summed.mean(1, keepdim=True)) / (spread + 1e-5).sqrt()
            out = out * norm.weight + norm.bias
            if place == 0:
                out = torch.nn.functional.leaky_relu(out, 0.2)
            x = x @ layer.kept.T + layer.bias + out
        users, items = self.sides(x)
        u, i = users[self.batch.users], items[self.batch.positives]
        cosine = (u * i).sum(1) / (u.norm(dim=1) * i.norm(dim=1))
        return x, {"bpr": 5 * dense_bpr(users, items), "cosine": 2 * (1 - cosine).mean()}

    def ngcf(self):
        layer, layers = self.x, [self.x]
        for one, two in self.model.weights:
            near = self.full @ layer
            layer = torch.nn.functional.leaky_relu(
                near @ one + layer @ one + (near * layer) @ two, 0.2
            )
            layer = layer * (torch.rand(layer.shape, generator=self.draws) >= 0.1) / 0.9
            layers.append(layer / layer.norm(dim=1, keepdim=True).clamp(min=1e-12))
        final = torch.cat(layers, dim=1)
        return final, {"bpr": dense_bpr(*self.sides(final))}

    def two_views(self, view, negatives: bool):
        final = self.layer_sum(self.full)
        first, second = self.sides(view()), self.sides(view())
        rows = [(0, self.batch.users), (1, self.batch.positives)]
        rows += [(1, self.batch.negatives)] if negatives else []
        sums = sum(dense_info_nce(first[s][r], second[s][r], second[s]) for s, r in rows)
        named = {"bpr": dense_bpr(*self.sides(final)), "contrast": 0.1 * sums / len(self.batch)}
        return final, named

    def sgl(self):
        def view() -> torch.Tensor:
            return self.layer_sum(drop_edges(self.model.graph, 0.8, self.draws).forward.to_dense())

        return self.two_views(view, negatives=True)

    def simgcl(self):
        def view() -> torch.Tensor:
            layers = [self.x]
            for _ in range(2):
                clean = self.full @ layers[-1]
                noise = torch.rand(clean.shape, generator=self.draws)
                noise = noise / noise.norm(dim=1, keepdim=True)
                layers.append(clean + 0.9 * noise * torch.sign(clean))
            return sum(layers)

        return self.two_views(view, negatives=False)

    def dccf(self):
        model, layers, contrast = self.model, [self.x], 0.0
        users, items = self.batch.users.unique(), self.batch.positives.unique()

        def adaptive(ends: torch.Tensor) -> torch.Tensor:
            normed = torch.nn.functional.normalize(ends)
            alpha = self.ones * (normed @ normed.T + 1) / 2
            return alpha / alpha.sum(1, keepdim=True)

        for _ in range(2):
            x = layers[-1]
            plain = self.full @ x
            (u, i), cu, ci = self.sides(x), model.user_intents, model.item_intents
            intents = torch.cat([torch.softmax(u @ cu, 1) @ cu.T, torch.softmax(i @ ci, 1) @ ci.T])
            views = [intents, adaptive(plain) @ x, adaptive(intents) @ x]
            for view in views:
                for side, rows in ((0, users), (1, items)):
                    one, two = self.sides(plain)[side][rows], self.sides(view)[side][rows]
                    contrast = contrast + dense_info_nce(one, two, two, 0.1) / len(users)
            layers.append(plain + sum(views) + x)
        final = sum(layers)
        return final, {"bpr": dense_bpr(*self.sides(final)), "contrast": 1e-3 * contrast}

    def autocf(self):
        """The edge lists and loops of the released code."""
        n, nodes, ones = len(self.x), self.model.nodes, self.ones
        order = ones.sum(1, keepdim=True)
        first = ones @ nodes - nodes
        second = ones @ first - first - order * nodes
        around = (first + second) / (order + (ones @ order - order) - order + 1e-8)
        normal = torch.nn.functional.normalize
        scores = torch.sigmoid((normal(around) * normal(nodes)).sum(1)).log()
        drawn = torch.rand(n, generator=self.draws)
        near = (scores - (-drawn.log()).log()).topk(1).indices.tolist()
        edges = ones.nonzero().tolist()
        kept, chosen = edges, set(near)
        for _ in range(2):
            hidden = [edge for edge in kept if edge[0] in near or edge[1] in near]
            kept = [edge for edge in kept if edge not in hidden]
            near = sorted({node for edge in hidden for node in edge})
            chosen |= set(near) if len(chosen) == 1 else set()
        assert 0 < len(kept) < len(edges)
        extra = torch.randint(n, (int(n * 0.2),), generator=self.draws).tolist()
        pool = sorted({*chosen, *extra})
        pairs = torch.randint(len(pool), (2, len(edges)), generator=self.draws).T.tolist()
        encoder, decoder = torch.zeros(n, n), torch.eye(n)
        for r, c in kept:
            encoder[r, c] = decoder[r, c] = 1.0
        for r, c in pairs:
            decoder[pool[r], pool[c]] = decoder[pool[c], pool[r]] = 1.0
        scale = (encoder.sum(1) + 1e-12).rsqrt()
        layers = [self.x]
        for _ in range(2):
            layers.append(scale[:, None] * encoder * scale @ layers[-1])
        q, k, v = (layers[-1] @ matrix for matrix in self.model.attention[0])
        heads = []
        for part in range(3):
            own = slice(part * 2, part * 2 + 2)
            weight = decoder * (q[:, own] @ k[:, own].T).clamp(-10, 10).exp()
            heads.append(weight / (weight.sum(1, keepdim=True) + 1e-8) @ v[:, own])
        final = sum(layers) + torch.cat(heads, dim=1)
        users, items = self.sides(final)

        def apart(rows: torch.Tensor, everyone: torch.Tensor) -> torch.Tensor:
            return (rows @ everyone.T).exp().sum(1).log().mean()

        anchors, positives = users[self.batch.users], items[self.batch.positives]
        uniformity = apart(users[self.batch.users.unique()], users)
        uniformity = uniformity + apart(items[self.batch.positives.unique()], items)
        return final, {
            "softmax": apart(anchors, items) - (anchors * positives).sum(1).mean(),
            "uniformity": 5.0 * uniformity,
            "infomax": -scores.mean(),
        }


def dense_losses(name: str, aligned: str, model: Recommender) -> dict[str, torch.Tensor]:
    profiles, batch, draws = toy_profiles(), toy_batch(), generator()
    backbone = model if aligned == "none" else model.backbone
    x = backbone.nodes
    has = np.concatenate([profiles.user_has_profile, profiles.item_has_profile])
    texts = torch.from_numpy(np.nan_to_num(np.concatenate([profiles.users, profiles.items])))
    if aligned == "gen":
        described = torch.from_numpy(np.flatnonzero(has))
        order = torch.randperm(len(described), generator=draws)
        masked = described[order[: len(described) // 4]]
        x = x.clone()
        x[masked] = model.token
    final, named = getattr(Dense(backbone, x, draws), name)()
    if aligned == "gen":
        rebuilt = model.mlp(final[masked])
        loss = dense_info_nce(rebuilt, texts[masked], texts[masked])
        named["align"] = 0.3 * loss / len(masked)
    if aligned == "con":
        text, everyone = model.mlp(texts), torch.from_numpy(has)
        items = [batch.positives] + ([] if name == "autocf" else [batch.negatives])
        nodes = batch.users[everyone[batch.users]]
        users = np.flatnonzero(profiles.user_has_profile)
        sums = dense_info_nce(final[nodes], text[nodes], text[users])
        for rows in items:
            rows = rows[everyone[rows + USERS]] + USERS
            sums = sums + dense_info_nce(final[rows], text[rows], text[rows])
        named["align"] = 0.3 * sums / len(batch)
    named["reg"] = 1e-3 * sum(parameter.square().sum() for parameter in model.parameters())
    return named


@EVERY
def test_one_optimiser_step_equals_the_dense_reference(name, aligned):
    ours, reference = model_of(name, aligned), model_of(name, aligned)
    found = ours.losses(toy_batch(), generator())
    expected = dense_losses(name, aligned, reference)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)
    for model, losses in ((ours, found), (reference, expected)):
        # Adam divides by the gradient's size, which makes a sign of rounding errors near zero.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    for (key, parameter), other in zip(
        ours.named_parameters(), reference.parameters(), strict=True
    ):
        torch.testing.assert_close(parameter, other, rtol=1e-4, atol=1e-6, msg=key)
