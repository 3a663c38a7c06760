"""The published model: a convolutional VAE per item that decodes a substrate and the map itself.

Tangwiriyasakul et al., Commun Biol 2026, doi 10.1038/s42003-025-09495-6, on the network of Pombo
et al., arXiv 2305.17478. The encoder sees the map, three coordinate channels and the score painted
as a volume. Half of the latent decodes to a substrate ``m``, the other half to the map;
``y = mean over voxels (x * m)``. The loss is the squared error of the z-scored item, plus the
voxel-summed squared error of the decoded map, plus the KL divergence. Of the participants 90 % are
trained on, 5 % are watched during training (validation) and 5 % choose the quantile at which the
map is cut (calibration). The map that is reported is the mean of ``m`` over the participants as
they passed through the last epoch of training.

It is kept as it was published, to be compared with. Ours: any grid (padded so that it can be
halved), an ordinal head on ``y`` so that it predicts levels, seeds, training that can be resumed,
and the bounds of the log variance and the step of the quantiles, which are not published. What is
known of it (no uncertainty, a latent that the score does not move, a threshold
that is chance) is left as it is; the KL divergence of the substrate's half is in the details.
Must not know other models.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bids_perfdeficit.deficit.checkpoint import Checkpoint
from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.models.base import DeficitModel, Drawing, ModelFit, Offers
from bids_perfdeficit.deficit.ordinal import fit_head
from bids_perfdeficit.deficit.preparation import Prepared, model_grid
from bids_perfdeficit.deficit.result import Item
from bids_perfdeficit.deficit.rules import exceedance
from bids_perfdeficit.deficit.settings import DeficitSettings

_LOG = logging.getLogger('bids_perfdeficit.deficit')

#: Channels of the first block; each of the next has twice as many.
_CHANNELS = 16
#: Share of the participants that are watched in training, and as many that the threshold is chosen
#: on; and the quantiles that are tried, from .905 to .995.
_HELD_SHARE = 0.05
_QUANTILES = np.linspace(0.905, 0.995, 10)
#: Log variances of the latent are clamped to plus and minus this.
_MOST_LOG_VARIANCE = 10.0
#: Raised when training changes, so that older checkpoints are not gone on from.
_TRAINING = 2
#: Seconds between two checkpoints, and points of the learning curve.
_CHECKPOINT_SECONDS = 60.0
_CURVE_POINTS = 50


class _Block(nn.Module):
    """Convolution, batch normalisation, GELU; then halve or double the size."""

    def __init__(self, inputs: int, outputs: int, *, up: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1), nn.BatchNorm3d(outputs), nn.GELU()
        )
        self.resize = nn.Upsample(scale_factor=2) if up else nn.AvgPool3d(2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.resize(self.layers(x))
        return result


class PublishedVAE(nn.Module):
    """The network of one item.

    Parameters
    ----------
    shape : (int, int, int)
        Voxels along each axis, multiples of ``2 ** depth``.
    depth : int
        How often the size is halved.
    latents : int
        Even; the first half decodes to the substrate.
    """

    def __init__(self, shape: tuple[int, ...], depth: int, latents: int) -> None:
        super().__init__()
        widths = [_CHANNELS * 2**i for i in range(depth)]
        self.n_substrate = latents // 2
        corner = tuple(n // 2**depth for n in shape)
        dense = widths[-1] * math.prod(corner)
        self.encoder = nn.Sequential(
            *(_Block(i, o, up=False) for i, o in zip([5, *widths], widths, strict=False)),
            nn.Flatten(),
        )
        self.mean, self.log_variance = nn.Linear(dense, latents), nn.Linear(dense, latents)
        self.substrate = self._decoder(widths[-1], corner, depth)
        self.reconstruction = self._decoder(widths[-1], corner, depth)

    def _decoder(self, width: int, corner: tuple[int, ...], depth: int) -> nn.Sequential:
        layers: list[nn.Module] = [
            nn.Linear(self.n_substrate, width * math.prod(corner)),
            nn.GELU(),
            nn.Unflatten(1, (width, *corner)),
        ]
        for _ in range(depth):
            layers.append(_Block(width, width // 2, up=True))
            width //= 2
        layers += [nn.Conv3d(width, width // 2, 3, padding=1), nn.GELU()]
        layers += [nn.Conv3d(width // 2, 1, 1)]
        return nn.Sequential(*layers)

    def encode(self, x: Tensor, y: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of z for (B, 1, X, Y, Z) maps and (B,) scores."""
        painted = y[:, None, None, None, None].expand_as(x)
        found = self.encoder(
            torch.cat([x, coordinates.expand(len(x), -1, -1, -1, -1), painted], 1)
        )
        log_variance = self.log_variance(found).clamp(-_MOST_LOG_VARIANCE, _MOST_LOG_VARIANCE)
        return self.mean(found), log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence from a standard normal per latent, in nats."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


class PublishedVAEModel(DeficitModel[None]):
    """One network per item; without a test, a probability and an adjustment for covariates."""

    name = 'vae'
    offers = Offers(probability=False, test=False, covariates=False)
    drawing = Drawing(
        'effect', 'mean decoded substrate (no unit)', ('none', 'strong'), '#CC79A7', 'D'
    )
    statistics: ClassVar[Mapping[str, str]] = {
        'effect': 'Decoded substrate, the mean over participants',
        'std': 'Standard deviation over participants of the decoded substrate',
    }
    methods = """\
*vae*: the published variational autoencoder [@deficit; @dvldm], one per item.
"""
    options = ('vae_epochs', 'vae_spacing')

    def fit(
        self,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        shared: None = None,
        maps: bool = True,
        checkpoint: Path | None = None,
    ) -> ModelFit:
        """Train one network per item.

        Training goes on from `checkpoint` if that was made from the same data and settings, to
        the same result as without an interruption.
        """
        del shared
        coarse, grid = prepared.coarse, prepared.grid
        own, weights_down = model_grid(coarse, settings.vae_spacing)
        volumes, inside = _volumes((weights_down.T @ prepared.measured.T).T, own)
        found = ModelFit.blank(prepared, scores, covariates, items, settings, maps=maps)
        readout = found.readout
        store = Checkpoint(checkpoint, _fingerprint(prepared, scores, items, settings))
        for k in found.usable:
            seen = np.flatnonzero(np.isfinite(scores[:, k]))
            score = torch.from_numpy(scores[seen, k])
            y = ((score - score.mean()) / score.std()).float()
            rng = np.random.default_rng(settings.seed + k)
            order = rng.permutation(len(seen))
            n_held = max(1, round(_HELD_SHARE * len(seen)))
            parts = (order[:n_held], order[n_held : 2 * n_held], order[2 * n_held :])
            calibration, validation, train = (np.sort(part) for part in parts)
            own_volumes = volumes[torch.from_numpy(seen)]
            substrate, spread, detail = _train(
                (own_volumes[train], own_volumes[validation]),
                (y[train], y[validation]),
                halvings(own.mask.shape),
                settings,
                settings.seed + k,
                store,
                items[k].name,
            )
            quantile = _best_quantile(own_volumes[calibration], y[calibration], substrate)
            threshold = float(np.quantile(substrate.numpy(), quantile))
            found.details[items[k].name] = {**detail, 'quantile': round(float(quantile), 3)}
            shape = own.resample_to(substrate[inside].numpy(), coarse)
            readout.weights[k, 0] = shape / coarse.n_voxels
            eta = prepared.features[0][seen] @ readout.weights[k, 0]
            slope, c, f = fit_head(
                torch.from_numpy(eta.astype(float)), score.long(), items[k].levels, settings.lapse
            )
            readout.weights[k] *= slope
            readout.cuts[k, : items[k].levels - 1], readout.frequencies[k, : items[k].levels] = (
                c.numpy(),
                f.numpy(),
            )
            if maps:
                found.effect[k] = own.resample_to(substrate[inside].numpy(), grid)
                found.std[k] = own.resample_to(spread[inside].numpy(), grid)
                found.cut[k] = threshold
                found.declared[k] = exceedance(found.effect[k], threshold)
        return found


def halvings(shape: tuple[int, ...]) -> int:
    """Return how often the size is halved: until 2 or 3 voxels are left of the longest axis."""
    return max(1, int(math.log2(max(shape))) - 1)


def _volumes(values: NDArray[np.float32], grid: Grid) -> tuple[Tensor, Tensor]:
    """Embed (N, V) values in (N, 1, X, Y, Z) padded volumes; and the mask in them."""
    unit = 2 ** halvings(grid.mask.shape)
    shape = tuple(math.ceil(n / unit) * unit for n in grid.mask.shape)
    inside = torch.zeros(shape, dtype=torch.bool)
    x, y, z = grid.mask.shape
    inside[:x, :y, :z] = torch.from_numpy(grid.mask)
    out = torch.zeros(len(values), 1, *shape)
    out[:, 0, inside] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return out, inside


def _train(
    maps: tuple[Tensor, Tensor],
    scores: tuple[Tensor, Tensor],
    depth: int,
    settings: DeficitSettings,
    seed: int,
    store: Checkpoint,
    name: str,
) -> tuple[Tensor, Tensor, dict[str, object]]:
    """Train one network and return mean and sd of the substrate over the last epoch.

    `maps` and `scores` are those that are trained on, and those that are watched.
    """
    device = torch.device(settings.device)
    (x, watched), (y, expected) = ((part.to(device) for part in both) for both in (maps, scores))
    shape = tuple(x.shape[2:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PublishedVAE(shape, depth, settings.vae_latents).to(device)
    optimizer = torch.optim.Adamax(
        model.parameters(),
        lr=settings.vae_learning_rate,
        weight_decay=settings.vae_weight_decay,
    )
    generator = torch.Generator().manual_seed(seed)
    lines = [torch.linspace(-1, 1, n) for n in shape]
    coordinates = torch.stack(torch.meshgrid(*lines, indexing='ij'))[None].to(device)
    epoch, curve = 0, []
    first = torch.zeros(shape, dtype=torch.double, device=device)
    second = torch.zeros_like(first)
    if state := store.get(name):
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        generator.set_state(state['generator'])
        epoch, curve = state['epoch'], state['curve']
        first, second = (moment.to(device) for moment in state['moments'])
    every = max(1, settings.vae_epochs // _CURVE_POINTS)
    saved = time.monotonic()
    while epoch < settings.vae_epochs:
        model.train()
        sums = torch.zeros(4, device=device)
        first, second = torch.zeros_like(first), torch.zeros_like(second)
        for rows in torch.randperm(len(x), generator=generator).split(settings.vae_batch):
            parts, m = losses(model, x[rows], y[rows], coordinates, generator)
            optimizer.zero_grad(set_to_none=True)
            parts.sum().backward()
            optimizer.step()
            sums += parts.detach() * len(rows) / len(x)
            first += m.double().sum(0) / len(x)
            second += (m.double() ** 2).sum(0) / len(x)
        epoch += 1
        if epoch % every == 0 or epoch == settings.vae_epochs:
            predicted = (watched[:, 0] * first.float()).mean(dim=(1, 2, 3))
            error = functional.mse_loss(predicted, expected)
            curve.append([epoch, *(round(float(v), 4) for v in (*sums, error))])
            _LOG.info('vae %s: epoch %d of %d, %s', name, epoch, settings.vae_epochs, curve[-1])
        if epoch == settings.vae_epochs or time.monotonic() - saved > _CHECKPOINT_SECONDS:
            store.put(
                name,
                {
                    'model': model.state_dict(),
                    'optimizer': optimizer.state_dict(),
                    'generator': generator.get_state(),
                    'epoch': epoch,
                    'curve': curve,
                    'moments': (first, second),
                },
            )
            saved = time.monotonic()
    model.eval()
    moved, size, kl = 0.0, 0.0, torch.zeros(settings.vae_latents, device=device)
    with torch.no_grad():
        for rows in torch.arange(len(x)).split(64):
            mean, log_variance = model.encode(x[rows], y[rows], coordinates)
            m = model.substrate(mean[:, : model.n_substrate])[:, 0]
            flipped = model.encode(x[rows], -y[rows], coordinates)[0]
            other = model.substrate(flipped[:, : model.n_substrate])[:, 0]
            moved += float((m - other).abs().mean(dim=(1, 2, 3)).sum()) / len(x)
            size += float(m.abs().mean(dim=(1, 2, 3)).sum()) / len(x)
            kl += divergence(mean, log_variance).sum(0) / len(x)
    spread = (second - first**2).clamp_min(0).sqrt()
    detail: dict[str, object] = {
        'kl_substrate': round(float(kl[: model.n_substrate].sum()), 4),
        'kl_reconstruction': round(float(kl[model.n_substrate :].sum()), 4),
        # how far the substrate moves, of its own size, when the score at the encoder is flipped
        'moved_by_score': round(moved / max(size, 1e-12), 4),
        # epoch, squared errors of score and map, both KL divergences, error of watched scores
        'curve': curve,
    }
    return first.float().cpu(), spread.float().cpu(), detail


def losses(
    model: PublishedVAE, x: Tensor, y: Tensor, coordinates: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the batch means of the score's and map's squared errors and both KLs; and m."""
    mean, log_variance = model.encode(x, y, coordinates)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    z = mean + noise * (0.5 * log_variance).exp()
    m = model.substrate(z[:, : model.n_substrate])
    decoded = torch.sigmoid(model.reconstruction(z[:, model.n_substrate :]))
    predicted = (x * m).mean(dim=(1, 2, 3, 4))
    kl = divergence(mean, log_variance)
    losses = [
        functional.mse_loss(predicted, y),
        ((decoded - x) ** 2).sum(dim=(1, 2, 3, 4)).mean(),
        kl[:, : model.n_substrate].sum(1).mean(),
        kl[:, model.n_substrate :].sum(1).mean(),
    ]
    return torch.stack(losses), m[:, 0].detach()


def _best_quantile(x: Tensor, y: Tensor, substrate: Tensor) -> float:
    """Return the quantile of the map above which it predicts scores with the least error."""
    flat, target = substrate.flatten().numpy(), y.numpy()
    values = x.flatten(1).numpy()
    errors = []
    for level in np.quantile(flat, _QUANTILES):
        predicted = values @ np.where(flat > level, flat, 0) / len(flat)
        errors.append(((predicted - target) ** 2).mean())
    return float(_QUANTILES[int(np.argmin(errors))])


def _fingerprint(
    prepared: Prepared,
    scores: NDArray[np.float64],
    items: tuple[Item, ...],
    settings: DeficitSettings,
) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(prepared.measured).tobytes())
    digest.update(np.nan_to_num(scores, nan=-1.0).tobytes())
    digest.update(repr((items, _training_options(settings))).encode())
    return digest.hexdigest()


def _training_options(settings: DeficitSettings) -> tuple[object, ...]:
    """Return what shapes training; the number of epochs may be raised and training goes on."""
    return (
        _TRAINING,
        settings.vae_batch,
        settings.vae_latents,
        settings.vae_learning_rate,
        settings.vae_weight_decay,
        settings.vae_spacing,
        settings.seed,
    )
