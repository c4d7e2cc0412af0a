"""Every method held against its definition, computed one image at a time from a plain forward."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans

from map_inputs import make_input, wrap
from plain_vit import PlainViT
from vitscope.maps import perturbation
from vitscope.maps.registry import METHODS
from vitscope.maps.rules import FROZEN
from vitscope.maps.targets import explain_cosine
from vitscope.maps.traced import trace_output

ROWS = ["timm/dinov2_reg", "timm/vit", "timm/deit_distilled"]
ALL = [*ROWS, "timm/vit_map"]


class Case:
    """A model, two images, and what the references of every test start from."""

    def __init__(self, name):
        self.name = name
        vit = wrap(name)
        vit.module.requires_grad_(False)
        self.given = make_input(vit)
        self.plain = PlainViT(vit.module)
        with torch.no_grad():
            embedded = [self.embed(p) for p in (self.given.pixels, self.given.references.pixels)]
        self.tokens, self.others = embedded
        self.mean_feature = torch.stack([self.plain.run(t).feature for t in self.others]).mean(0)
        self.mean_tokens = self.others.mean(dim=0)
        self.features = torch.stack([self.plain.run(t).feature for t in self.tokens])

    def embed(self, pixels):
        found = []
        block = self.given.vit.module.blocks[0]
        handle = block.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        self.given.vit.module(pixels)
        handle.remove()
        return found[0]

    def direction(self, image):
        centred = self.features[image] - self.mean_feature
        return centred / (centred @ centred)

    def measure(self, image, feature):
        return (feature - self.mean_feature) @ self.direction(image)

    def run(self, image):
        tokens = self.tokens[image].clone().requires_grad_()
        run = self.plain.run(tokens)
        return tokens, run, self.measure(image, run.feature)

    def check(self, method, reference, tolerance=1e-9):
        found = METHODS[method].compute(self.given).values
        wanted = torch.stack([reference(image) for image in range(len(self.tokens))])
        assert found.shape == self.tokens.shape[:2]
        size = wanted.abs().max()
        assert size > 1e-6
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(size))


@pytest.fixture(scope="module", params=ALL)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module", params=ROWS)
def row_case(request):
    return Case(request.param)


def place(case, values):
    """Values of the tokens that the last attention reads, or of patches, among all tokens."""
    placed = torch.zeros(case.given.num_tokens, dtype=values.dtype)
    placed[len(placed) - len(values) :] = values
    return placed


def place_patches(case, values):
    placed = torch.zeros(case.given.num_tokens, dtype=torch.float64)
    placed[case.given.patches] = values.double()
    return placed


def test_the_plain_forward_is_the_model(case):
    torch.testing.assert_close(case.features, case.given.own.feature, rtol=1e-10, atol=1e-12)


def test_rollout(case):
    def reference(image):
        _, run, _ = case.run(image)
        depth = case.given.vit.info.depth
        product = torch.eye(len(run.streams[0]), dtype=torch.float64)
        for weights in run.attention[:depth]:
            mixed = weights.mean(dim=0) + torch.eye(len(product), dtype=torch.float64)
            product = mixed / mixed.sum(dim=1, keepdim=True) @ product
        if len(run.attention) == depth:
            return product[0].detach()
        return (place(case, run.attention[-1].mean(dim=0)[0]) @ product).detach()

    case.check("rollout", reference)
    # Mass is neither lost nor made; what does not end on patches is on other tokens.
    torch.testing.assert_close(
        METHODS["rollout"].compute(case.given).values.sum(dim=1), torch.ones(2).double()
    )


def test_rollout_by_norm(row_case):
    case = row_case

    def reference(image):
        _, run, _ = case.run(image)
        product = torch.eye(len(run.streams[0]), dtype=torch.float64)
        for block, stream, weights in zip(
            case.plain.module.blocks, run.streams[:-1], run.attention, strict=True
        ):
            branch = block.ls1(block.attn(block.norm1(stream.unsqueeze(0))))[0]
            skip = stream.norm(dim=1) / (stream.norm(dim=1) + branch.norm(dim=1))
            mixed = torch.diag(skip) + (1 - skip).unsqueeze(1) * weights.mean(dim=0)
            product = mixed @ product
        return product[0].detach()

    case.check("rollout_norm", reference)


def test_chefer(case):
    def reference(image):
        _, run, score = case.run(image)
        gradients = torch.autograd.grad(score, run.attention)
        relevance = torch.eye(len(run.streams[0]), dtype=torch.float64)
        pairs = list(zip(run.attention, gradients, strict=True))
        depth = case.given.vit.info.depth
        for weights, gradient in pairs[:depth]:
            relevance = relevance + (weights * gradient).clamp(min=0).mean(dim=0) @ relevance
        if len(pairs) == depth:
            return relevance[0].detach()
        weights, gradient = pairs[-1]
        pooled = place(case, (weights * gradient).clamp(min=0).mean(dim=0)[0])
        return (pooled @ relevance).detach()

    case.check("chefer", reference)


def test_legrad(row_case):
    case = row_case

    def reference(image):
        total = 0
        for layer in range(case.given.vit.info.depth)[-2:]:
            _, run, _ = case.run(image)
            score = case.measure(image, case.plain.embed(run.streams[layer + 1].mean(dim=0)))
            (gradient,) = torch.autograd.grad(score, run.attention[layer])
            total = total + gradient.clamp(min=0).mean(dim=(0, 1))
        return total

    case.check("legrad", reference)


def test_cdam(case):
    def reference(image):
        _, run, score = case.run(image)
        (gradient,) = torch.autograd.grad(score, run.normed)
        return place(case, (run.normed * gradient).sum(dim=1).detach())

    case.check("cdam", reference)


def test_gradcam(case):
    def reference(image):
        _, run, score = case.run(image)
        (gradient,) = torch.autograd.grad(score, run.normed)
        num = len(case.given.patches)
        importance = gradient[-num:].mean(dim=0)
        return place(case, (run.normed * importance).sum(dim=1).detach())

    case.check("gradcam", reference)


def test_gradient_times_input(case):
    def reference(image):
        tokens, _, score = case.run(image)
        (gradient,) = torch.autograd.grad(score, tokens)
        return ((tokens - case.mean_tokens) * gradient).sum(dim=1).detach()

    case.check("gradient_input", reference)


def test_integrated_gradients(case):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed (dev extra)")
    steps = []

    def reference(image):
        def score(batch):
            return torch.stack([case.measure(image, case.plain.run(x).feature) for x in batch])

        tokens, baseline = case.tokens[image : image + 1], case.mean_tokens.unsqueeze(0)
        total = float((score(tokens) - score(baseline)).detach())
        for count in (8, 16, 32, 64):
            found = attr.IntegratedGradients(score).attribute(
                tokens, baseline, n_steps=count, method="riemann_middle"
            )
            if abs(float(found.sum()) - total) <= 0.05 * abs(total):
                break
        steps.append(count)
        return found[0].sum(dim=1).detach()

    case.check("integrated_gradients", reference)
    # Images that need different numbers of steps take their own.
    assert steps == ([8, 16] if case.name == "timm/vit_map" else [8, 8])


def test_the_frozen_trace_is_the_derivative_of_the_held_function_at_every_depth(case):
    parts = trace_output(case.given, rules=FROZEN).parts
    for image in range(len(case.tokens)):
        own = case.plain.run(case.tokens[image])
        others = [case.plain.run(tokens).streams for tokens in case.others]
        for depth in range(parts.shape[1]):
            x = own.streams[depth]
            mean = torch.stack([streams[depth] for streams in others]).mean(dim=0)

            def run_held(stream, own=own, image=image, depth=depth):
                run = case.plain.run(case.tokens[image], frozen=own, replaced={depth: stream})
                return run.feature

            for token in range(len(x)):
                change = torch.zeros_like(x)
                change[token] = x[token] - mean[token]
                _, derivative = torch.autograd.functional.jvp(run_held, x, change)
                wanted = derivative @ case.direction(image)
                torch.testing.assert_close(
                    parts[image, depth, token], wanted, rtol=1e-9, atol=1e-11
                )


def test_the_frozen_trace_is_what_vectors_carried_forward_add_up_to(case):
    """As DecompX carries them: one per token, and one for all biases."""

    def reference(image):
        own = case.plain.run(case.tokens[image])
        alone = torch.diag_embed(case.tokens[image].T).permute(2, 1, 0)  # token by token
        mean = torch.diag_embed(case.mean_tokens.T).permute(2, 1, 0)
        nothing = case.plain.run(torch.zeros_like(case.tokens[image]), frozen=own).feature
        carried, averages = (
            torch.stack([case.plain.run(x, frozen=own).feature - nothing for x in each])
            for each in (alone, mean)
        )
        # They sum to the model's own output.
        torch.testing.assert_close(carried.sum(dim=0) + nothing, case.features[image])
        return (carried - averages) @ case.direction(image)

    case.check("frozen", reference)


def drop(case, image, kept):
    prefix = [i for i in range(case.given.num_tokens) if i not in case.given.patches]
    places = sorted(prefix + [case.given.patches.start + int(i) for i in kept])
    return float(case.measure(image, case.plain.run(case.tokens[image][places]).feature))


def test_single_deletion(case):
    def reference(image):
        num = len(case.given.patches)
        own = float(case.measure(image, case.features[image]))
        losses = [own - drop(case, image, [j for j in range(num) if j != i]) for i in range(num)]
        return place_patches(case, torch.tensor(losses, dtype=torch.float64))

    case.check("single_deletion", reference)


def test_tis(case, monkeypatch):
    monkeypatch.setattr(perturbation, "_CENTROIDS", 12)

    def reference(image):
        streams = case.plain.run(case.tokens[image]).streams[1:]
        curves = np.concatenate([x[case.given.patches].numpy() for x in streams], axis=1).T
        centroids = (
            KMeans(n_clusters=12, n_init=1, random_state=0, max_iter=50)
            .fit(curves.astype(np.float32))
            .cluster_centers_
        )
        num = curves.shape[1]
        sums, counts = np.zeros(num), np.zeros(num)
        for centroid in centroids:
            kept = sorted(np.argsort(-centroid)[: num // 2])
            score = drop(case, image, kept)
            sums[kept] += score
            counts[kept] += 1
        return place_patches(case, torch.from_numpy(sums / np.maximum(counts, 1)))

    case.check("tis", reference, 1e-6)


def test_vit_cx(case):
    given = case.given

    def score(image, pixels):
        with torch.no_grad():
            tokens = case.embed(pixels.unsqueeze(0))[0]
        return float(case.measure(image, case.plain.run(tokens).feature))

    def stretch(row):
        return (row - row.min()) / (row.max() - row.min())

    def reference(image):
        pixels, num = given.pixels[image], len(given.patches)
        normed = case.plain.run(case.tokens[image]).normed[-num:].float()
        channels = torch.stack([stretch(channel) for channel in normed.T])
        tree = linkage(channels.numpy(), method="complete", metric="cosine")
        groups = fcluster(tree, 0.1, criterion="distance")
        noise = 0.1 * torch.randn(pixels.shape, generator=given.make_generator(image)).double()
        sums, weights = torch.zeros(num).double(), torch.zeros(num).double()
        members = sorted(set(groups))
        for group in members:
            mask = stretch(channels[torch.from_numpy(groups == group)].sum(dim=0)).double()
            smooth = torch.nn.functional.interpolate(
                mask.reshape(1, 1, *given.layout.grid), size=pixels.shape[1:], mode="bilinear"
            )[0]
            lost = score(image, pixels * smooth + noise * (1 - smooth))
            lost = lost - score(image, pixels + noise * (1 - smooth)) + score(image, pixels)
            sums, weights = sums + lost * mask, weights + mask
        return place_patches(case, sums / weights / len(members))

    case.check("vit_cx", reference, 1e-6)


def test_a_cosine_has_no_gradient_at_the_image_itself_but_is_traced():
    case = Case("timm/vit")
    given = make_input(case.given.vit, choice=explain_cosine)
    centred = case.features - case.mean_feature

    assert METHODS["gradient_input"].compute(given).values.abs().max() < 1e-10
    trace = trace_output(given)
    wanted = [
        1
        - torch.stack(
            [
                torch.cosine_similarity(
                    case.plain.run(tokens).feature - case.mean_feature, centred[image], dim=0
                )
                for tokens in case.others
            ]
        ).mean()
        for image in range(2)
    ]
    torch.testing.assert_close(trace.total, torch.stack(wanted))
