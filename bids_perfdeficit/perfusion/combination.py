"""Many features of late contrast, joined by small calibrated networks into maps of delay.

No single feature suffices: arrival follows the arteries but not the tissue, and the tissue's own
enhancement is confounded by its kind, for white matter holds half the blood. Each becomes a rank
in the brain or a logarithm against the brain's median or the mirrored position, so that scanners
and doses do not matter. Positions are not features, so that the network does not learn the anatomy
of those it was fitted on. Four numbers describe the scan: the contrast of sinuses, tissue and
small vessels over that of the arteries, and what its shading leaves unexplained. Each network has
two hidden layers of tens of units and three outputs: lateness, the log odds of hypoperfusion, and
the delay in seconds. A first network is applied to these features, and the networks that give the
result see also what it found around the voxel (`surroundings`). Their outputs are averaged, and
their differences are part of the uncertainty. All were fitted on digital patients and lie, with
their provenance, in ``perfusion_calibration.json``. Must not know files of patients, or templates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate, pad, softplus

from bids_perfdeficit.perfusion.recalibration import calibration
from bids_perfdeficit.perfusion.targets import LONGEST_S
from bids_perfdeficit.perfusion.threads import run_all
from bids_perfdeficit.perfusion.vessels import smooth

#: Carries a map in the patient to the position of its left-right mirror; same grid.
Mirror = Callable[[Tensor], Tensor]

#: Standard deviations in mm over which the tissue's enhancement is averaged; that of the vessels'
#: contrast; that of the NCCT's own density.
TISSUE_MM = (4.0, 8.0, 12.0, 20.0)
VESSEL_MM, DENSITY_MM = 16.0, 6.0
#: HU of the NCCT that are brain tissue; vein prior from which a voxel may be a vein.
_TISSUE = (15.0, 60.0)
_VEIN = 0.2
#: Smoothing in mm before those are asked: single voxels are too noisy.
_DENOISE = 2.0
#: HU that the brightest cm3 of arteries of the brain has in a usual scan, at that smoothing; HU of
#: the NCCT there, and share of brain within some mm: rim and bone are left out, since a residual
#: edge of bone is brighter than an artery.
_USUAL_HU, _ARTERY_ML = 55.0, 1.0
_ARTERY_NCCT, _DEEP_SHARE, _DEEP_MM = (0.0, 80.0), 0.97, 4.0
#: Arteries at the base, by which the contrast of the sinuses is measured: their brightest cm3, and
#: mm about the sources along each axis.
_INFLOW_ML, _INFLOW_MM = 0.3, 20.0
#: HU of it, at least; vein prior from which a voxel lies in a sinus.
_LEAST_INFLOW_HU, _SINUS = 5.0, 0.8
#: Contrast of a scan in units of a usual one, at least and at most: less is noise, and where it is
#: more, as in late scans, cortical veins are filled too. Digital patients have .56 to 2.0.
_SCALES = (0.3, 2.0)
#: HU of subtraction, in a usual scan, from which a voxel is a vessel, and up to which its contrast
#: counts.
_VESSEL_HU, _MOST_VESSEL_HU = 35.0, 200.0
#: Enhancement, as a share of the brain's median, below which its logarithm is noise; HU below
#: which that median is.
_LEAST_SHARE, _LEAST_HU = 0.12, 0.5
#: Shading over the brain's median enhancement at which its feature ends.
_SHADING_SPAN = 1.0
#: Where logarithms end: of the tissue, of vessels, of either against its mirrored position.
_TISSUE_SPAN, _VESSEL_SPAN, _MIRROR_SPAN = 2.0, 3.0, 1.5
#: Share of the brain's median contrast of vessels that is added before a logarithm: none is 0.
_VESSEL_FLOOR = 0.1
#: mm of arrival at which its logarithm begins to be proportional to it.
_ARRIVAL_FLOOR = 50.0
#: HU of difference in density, from the brain's median and from the mirrored position, that count
#: 1.
_DENSITY_HU, _DENSITY_MIRROR_HU = 10.0, 5.0
#: Standard deviations from what the network was fitted on beyond which it is not to be believed.
_UNUSUAL = 4.0
#: Features of enhancement, whose change from phase to phase of a CTA is used.
CHANGING = ('level', 'level_wide', 'vessels', 'asymmetry', 'asymmetry_wide', 'vessel_asymmetry')
#: Voxels that the networks see at once: as many as the cache of a core holds.
_CHUNK = 1 << 12


def ranks(values: Tensor, brain: Tensor) -> Tensor:
    """Ranks in the brain, from 0 to 1: scales of unlike signals become alike; 0 outside."""
    _, place, counts = torch.unique(values[brain], return_inverse=True, return_counts=True)
    middle = (torch.cumsum(counts, 0).double() - counts / 2) / len(place)  # ties share a rank
    out = torch.zeros_like(values)
    out[brain] = middle[place].to(values.dtype)
    return out


def _wide_smooth(values: Tensor, sigma: float, spacing: Sequence[float]) -> Tensor:
    """Smooth on a grid of about a third of sigma: as good, and much cheaper than on the fine."""
    factor = [max(1, int(sigma / 3 / h)) for h in spacing]
    if max(factor) == 1:
        return smooth(values, sigma, spacing)
    fill = [-n % f for n, f in zip(values.shape, factor, strict=True)]
    wide = pad(values[None, None], (0, fill[2], 0, fill[1], 0, fill[0]), mode='replicate')
    coarse = avg_pool3d(wide, factor)[0, 0]
    step = [h * f for h, f in zip(spacing, factor, strict=True)]
    fine = interpolate(
        smooth(coarse, sigma, step)[None, None], size=wide.shape[2:], mode='trilinear'
    )
    return fine[0, 0, : values.shape[0], : values.shape[1], : values.shape[2]]


@dataclass(frozen=True, eq=False)
class Denoised:
    """A pair of scans, smoothed, and how strong its contrast is.

    Attributes
    ----------
    density, contrast : Tensor, (Z, Y, X)
        HU of the NCCT and of the subtraction, smoothed by 2 mm.
    scale : float
        Contrast of the arteries in units of a usual scan. HU by which vessels differ from
        tissue are multiplied by it: dose, voltage and cardiac output change all contrast alike.
    """

    density: Tensor
    contrast: Tensor
    scale: float


def denoise(
    ncct: Tensor,
    subtraction: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor | None = None,
    threads: int = 1,
) -> Denoised:
    """Smooth a pair of scans, and measure its contrast in the arteries of the brain.

    Parameters
    ----------
    ncct, subtraction : Tensor, (Z, Y, X)
        HU.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    veins : Tensor, (Z, Y, X), optional
        Vein prior.
    threads : int
        Maps that are computed at once; the result is the same.
    """
    density, contrast, share = run_all(
        [
            partial(smooth, ncct, _DENOISE, spacing),
            partial(smooth, subtraction, _DENOISE, spacing),
            partial(_wide_smooth, brain.float(), _DEEP_MM, spacing),
        ],
        threads,
    )
    used = brain & (density > _ARTERY_NCCT[0]) & (density < _ARTERY_NCCT[1])
    used &= share > _DEEP_SHARE
    if veins is not None:
        used &= veins < _VEIN
    level = _brightest(contrast[used], _ARTERY_ML, spacing)
    return Denoised(density, contrast, min(max(level / _USUAL_HU, _SCALES[0]), _SCALES[1]))


def _brightest(values: Tensor, volume: float, spacing: Sequence[float]) -> float:
    """Return the HU that the brightest cm3 have; that of a usual scan where there is nothing."""
    count = min(max(1, round(volume * 1000 / math.prod(spacing))), len(values))
    return float(torch.topk(values, count).values[-1]) if count else _USUAL_HU


def _inflow_contrast(
    denoised: Denoised, brain: Tensor, start: Tensor, veins: Tensor, spacing: Sequence[float]
) -> float:
    """Return the contrast of the arteries at the base, HU.

    About the sources: in the sources themselves bone is near, whose edge is as bright.
    """
    reach = [max(1, round(_INFLOW_MM / h)) for h in spacing]
    near = torch.zeros_like(brain)
    for point in torch.nonzero(start).tolist():
        near[tuple(slice(max(0, p - r), p + r + 1) for p, r in zip(point, reach, strict=True))] = 1
    used = near & brain & (veins < _VEIN)
    used &= (denoised.density > _ARTERY_NCCT[0]) & (denoised.density < _ARTERY_NCCT[1])
    return max(_brightest(denoised.contrast[used], _INFLOW_ML, spacing), _LEAST_INFLOW_HU)


def in_usual_contrast(vessels: Tensor, scale: float) -> Tensor:
    """Return the vesselness that a scan would have with the contrast of a usual one.

    Parameters
    ----------
    vessels : Tensor
        `r / (r + HALF)` of a response in HU, in [0, 1).
    scale : float
        `Denoised.scale`.

    >>> float(in_usual_contrast(torch.tensor(0.5), 1.0))
    0.5
    """
    return vessels / (vessels + (1 - vessels) * scale)


def tissue_enhancement(
    denoised: Denoised,
    subtraction: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor | None = None,
    sigmas: Sequence[float] = TISSUE_MM,
    threads: int = 1,
) -> list[Tensor]:
    """Mean enhancement of tissue: a normalised convolution over tissue voxels only.

    CSF, vessels and bone get weight zero, so that none of them bleeds across an edge.

    Parameters
    ----------
    denoised : Denoised
        From `denoise`.
    subtraction : Tensor, (Z, Y, X)
        HU.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    veins : Tensor, (Z, Y, X), optional
        Vein prior.
    sigmas : sequence of float
        mm; a map for each.
    threads : int
        Maps that are computed at once; the result is the same.

    Returns
    -------
    list of Tensor, (Z, Y, X)
        HU; 0 outside the brain.
    """
    density, contrast = denoised.density, denoised.contrast
    weight = brain & (density > _TISSUE[0]) & (density < _TISSUE[1])
    weight &= contrast < _VESSEL_HU * denoised.scale
    if veins is not None:
        weight &= veins < _VEIN
    share = weight.float()
    weighted = share * subtraction

    def average(sigma: float) -> Tensor:
        total = _wide_smooth(share, sigma, spacing).clamp_min(1e-3)
        value = _wide_smooth(weighted, sigma, spacing) / total
        return torch.where(brain, value, torch.zeros_like(value))

    return run_all([partial(average, sigma) for sigma in sigmas], threads)


def vessel_contrast(
    subtraction: Tensor,
    vessels: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Contrast in the vessels around a voxel, without the great veins.

    Parameters
    ----------
    subtraction, vessels : Tensor, (Z, Y, X)
        HU, and vesselness in [0, 1) of a scan of usual contrast.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    veins : Tensor, (Z, Y, X), optional
        Vein prior.
    scale : float
        `Denoised.scale`.

    Returns
    -------
    Tensor, (Z, Y, X)
        HU times vesselness, averaged over `VESSEL_MM` within the brain.
    """
    inside = brain if veins is None else brain & (veins < _VEIN)
    most = _MOST_VESSEL_HU * scale
    tube = torch.where(inside, subtraction.clamp(0, most) * vessels, torch.zeros_like(vessels))
    return share_smooth([tube], brain, VESSEL_MM, spacing)[0]


def share_smooth(
    maps: Sequence[Tensor], brain: Tensor, sigma: float, spacing: Sequence[float]
) -> list[Tensor]:
    """Return the means of maps within the brain under a Gaussian of so many mm; see `smooth`.

    Parameters
    ----------
    maps : sequence of Tensor, (Z, Y, X)
        0 outside the brain.
    brain : Tensor, bool, (Z, Y, X)
    sigma : float
        mm.
    spacing : sequence of float
        mm along (z, y, x).

    Returns
    -------
    list of Tensor, (Z, Y, X)
    """
    share = _wide_smooth(brain.float(), sigma, spacing).clamp_min(1e-2)
    return [_wide_smooth(values, sigma, spacing) / share for values in maps]


def _usual(values: Tensor, brain: Tensor) -> Tensor:
    return values[brain].median().clamp_min(_LEAST_HU)


def _enhancement_features(
    middle: Tensor,
    widest: Tensor,
    tube: Tensor,
    brain: Tensor,
    mirror: Mirror | None,
    threads: int,
) -> dict[str, Tensor]:
    """Return `CHANGING` from two means of tissue enhancement and the contrast in vessels."""
    usual = tube[brain].median().clamp_min(1e-3)
    floor = _VESSEL_FLOOR * usual
    tube = tube + floor

    def level(values: Tensor) -> Tensor:
        share = values / _usual(values, brain)
        return share.clamp_min(_LEAST_SHARE).log().clamp(-_TISSUE_SPAN, _TISSUE_SPAN)

    pieces: dict[str, Callable[[], Tensor]] = {
        'level': partial(level, middle),
        'level_wide': partial(level, widest),
        'vessels': lambda: (tube / usual).log().clamp(-_VESSEL_SPAN, _VESSEL_SPAN),
    }
    if mirror is not None:

        def against(values: Tensor) -> Tensor:
            least = _LEAST_SHARE * _usual(values, brain)
            ratio = torch.maximum(mirror(values), least) / torch.maximum(values, least)
            return ratio.log().clamp(-_MIRROR_SPAN, _MIRROR_SPAN)

        pieces |= {
            'asymmetry': partial(against, middle),
            'asymmetry_wide': partial(against, widest),
            'vessel_asymmetry': lambda: ((mirror(tube - floor) + floor) / tube).log().clamp(-2, 2),
        }
    return dict(zip(pieces, run_all(pieces.values(), threads), strict=True))


def enhancement_features(
    denoised: Denoised,
    subtraction: Tensor,
    vessels: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor | None = None,
    mirror: Mirror | None = None,
    threads: int = 1,
) -> dict[str, Tensor]:
    """Return the features that change from one phase of a CTA to the next: `CHANGING`.

    Parameters
    ----------
    denoised : Denoised
        Of one phase, with the scale of the first.
    subtraction, vessels : Tensor, (Z, Y, X)
        HU, and vesselness in [0, 1) of a scan of usual contrast, of that phase.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    veins : Tensor, (Z, Y, X), optional
        Prior of the veins.
    mirror : callable, optional
        Carries a map to its mirrored position; without it asymmetries are missing.
    threads : int
        Maps that are computed at once; the result is the same.

    Returns
    -------
    dict of str to Tensor
        As `compute_features` returns them.
    """
    middle, widest = tissue_enhancement(
        denoised, subtraction, brain, spacing, veins=veins, sigmas=(TISSUE_MM[1], TISSUE_MM[3]),
        threads=threads,
    )  # fmt: skip
    tube = vessel_contrast(subtraction, vessels, brain, spacing, veins=veins, scale=denoised.scale)
    return _enhancement_features(middle, widest, tube, brain, mirror, threads)


def compute_features(
    ncct: Tensor,
    denoised: Denoised,
    subtraction: Tensor,
    vessels: Tensor,
    arrival: Tensor,
    brain: Tensor,
    start: Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor | None = None,
    white: Tensor | None = None,
    grey: Tensor | None = None,
    mirror: Mirror | None = None,
    shading: Tensor | None = None,
    residual: float | None = None,
    threads: int = 1,
) -> dict[str, Tensor]:
    """Return the features of late contrast.

    Parameters
    ----------
    ncct : Tensor, (Z, Y, X)
        HU.
    denoised : Denoised
        From `denoise`.
    subtraction, vessels, arrival : Tensor, (Z, Y, X)
        HU, vesselness in [0, 1) of a scan of usual contrast, and arrival from the eikonal
        equation.
    brain, start : Tensor, bool, (Z, Y, X)
        The brain, and where the front started.
    spacing : sequence of float
        mm along (z, y, x).
    veins, white, grey : Tensor, (Z, Y, X), optional
        Prior of the veins, probabilities of the tissues.
    mirror : callable, optional
        Carries a map to its mirrored position.
    shading : Tensor, (Z, Y, X), optional
        HU of the reference field that were estimated and left in place: the network learns how
        far to believe them.
    residual : float, optional
        HU: what the reference field does not explain, which is noise of a centimetre and delay.
    threads : int
        Maps that are computed at once; the result is the same.

    Returns
    -------
    dict of str to Tensor
        Maps, and numbers of the whole patient (``venous``, ``tissue``, ``residual``,
        ``sharpness``) as tensors without a dimension. Those are missing whose inputs are.
    """
    tissue = tissue_enhancement(
        denoised, subtraction, brain, spacing, veins=veins, sigmas=TISSUE_MM, threads=threads
    )
    near, middle, wide, widest = tissue

    def densities() -> Tensor:
        density = torch.where(brain, ncct.float().clamp(0, 80), torch.zeros_like(subtraction))
        return share_smooth([density], brain, DENSITY_MM, spacing)[0]

    def travelled() -> Tensor:
        travel = torch.where(brain, arrival.nan_to_num(posinf=0.0), torch.zeros_like(arrival))
        return torch.where(brain, (travel + _ARRIVAL_FLOOR).log(), torch.zeros_like(travel))

    pieces: list[Callable[[], Tensor]] = [
        partial(
            vessel_contrast,
            subtraction,
            vessels,
            brain,
            spacing,
            veins=veins,
            scale=denoised.scale,
        ),
        densities,
        travelled,
        *(partial(ranks, values, brain) for values in (arrival, -near, -wide)),
    ]
    tube, density, travel, *levels = run_all(pieces, threads)
    enhanced = _enhancement_features(middle, widest, tube, brain, mirror, threads)
    out = {
        'arrival': levels[0] - 0.5,
        'near': levels[1] - 0.5,
        'wide': levels[2] - 0.5,
        **{name: enhanced[name] for name in ('level', 'level_wide', 'vessels')},
        'density': ((density - density[brain].median()) / _DENSITY_HU).clamp(-2, 2),
    }
    if white is not None:
        out['white'] = white - 0.5
    if grey is not None:
        out['grey'] = grey - 0.5
    if mirror is not None:
        mirrored: dict[str, Callable[[], Tensor]] = {
            'arrival_asymmetry': lambda: (travel - mirror(travel)).clamp(
                -_MIRROR_SPAN, _MIRROR_SPAN
            ),
            'density_asymmetry': lambda: ((mirror(density) - density) / _DENSITY_MIRROR_HU).clamp(
                -2, 2
            ),
        }
        out |= {name: values for name, values in enhanced.items() if name not in out}
        out |= dict(zip(mirrored, run_all(mirrored.values(), threads), strict=True))
    if veins is not None and bool((sinus := veins > _SINUS).any()):
        share = denoised.contrast[sinus].quantile(0.9) / _inflow_contrast(
            denoised, brain, start, veins, spacing
        )
        out['venous'] = share.clamp_min(0.03).log().clamp(-3, 1)
    artery = _USUAL_HU * denoised.scale
    out['tissue'] = (_usual(wide, brain) / artery).clamp_min(0.003).log()
    out['sharpness'] = (tube[brain].median() / artery).clamp_min(1e-4).log()
    if shading is not None:
        share = shading / _usual(wide, brain)
        out['shading'] = share.clamp(-_SHADING_SPAN, _SHADING_SPAN)
    if residual is not None and math.isfinite(residual):
        out['residual'] = (residual / _usual(wide, brain)).clamp_min(0.01).log()
    return out


def unusual(
    found: Mapping[str, Tensor], fitted: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return which numbers of the patient are far from all that the network was fitted on.

    Parameters
    ----------
    found : mapping of str to Tensor
        From `compute_features`.
    fitted : mapping, optional
        The networks; those of `calibration` by default. The first of them counts, which sees
        nothing but the scan.

    Returns
    -------
    tuple of str
        Of ``venous``, ``tissue``, ``sharpness`` and ``residual``. With any, the maps are a guess.
    """
    fitted = (calibration() if fitted is None else fitted)['first']
    return tuple(
        name
        for name, centre, scale in zip(
            fitted['features'], fitted['centre'], fitted['scale'], strict=True
        )
        if name in found
        and not found[name].ndim
        and abs(float(found[name]) - centre) > _UNUSUAL * scale
    )


def _stack(fitted: Mapping[str, Any], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return weights (K, out, in) and biases (K, out, 1) of each layer of all members."""
    members = [member['layers'] for member in fitted['members']]
    return [
        (
            torch.stack([torch.tensor(layer['weight'], device=device) for layer in same]),
            torch.stack([torch.tensor(layer['bias'], device=device) for layer in same])[..., None],
        )
        for same in zip(*members, strict=True)
    ]


def _pass(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the last hidden layers (K, H, V) of standardised features (F, V)."""
    (weight, bias), *others = layers
    members, units, wide = weight.shape
    # The members share their input: their first layers are one matrix.
    x = torch.addmm(bias.reshape(-1, 1), weight.reshape(-1, wide), x).tanh_()
    x = x.reshape(members, units, -1)
    for weight, bias in others:
        x = torch.baddbmm(bias, weight, x).tanh_()
    return x


def hidden_units(values: Tensor, fitted: Mapping[str, Any] | None = None) -> Tensor:
    """Return the last hidden layers of the networks, which their outputs are linear in.

    Parameters
    ----------
    values : Tensor, (V, F)
        Features in the order of ``fitted['features']``; one that is not a number counts as its
        mean in those the networks were fitted on.
    fitted : mapping, optional
        The networks; those of `calibration` by default.

    Returns
    -------
    Tensor, (V, K H)
        In (-1, 1): of one member after the other.
    """
    fitted = calibration() if fitted is None else fitted
    centre, scale = (torch.tensor(fitted[k], device=values.device) for k in ('centre', 'scale'))
    x = ((values - centre) / scale).nan_to_num(0.0)
    units = _pass(x.T.contiguous(), _stack(fitted, values.device)[:-1])
    return units.reshape(-1, len(values)).T.contiguous()


@dataclass(frozen=True)
class Combined:
    """What the networks make of the features; maps are (Z, Y, X), float32 and 0 outside the brain.

    Attributes
    ----------
    late : Tensor
        `targets.lateness`: rank of the delay in the brain, from 0 to 1, plus a share of its
        seconds; mean of the members.
    hypoperfused : Tensor
        Probability of a delay of more than 6 s: that of the mean of the members' log odds.
    delay : Tensor
        Expected delay in s, from 0 to `targets.LONGEST_S`, which represents any longer one: mean
        of the members.
    delay_sd : Tensor
        Its standard deviation in s: that of the errors in digital patients with such a computed
        delay, and that between the members, added in quadrature.
    member_voxels : Tensor of int64, (K, 2)
        Voxels of the brain that are above the threshold by each member alone, outside of `half`
        and in it.
    """

    late: Tensor
    hypoperfused: Tensor
    delay: Tensor
    delay_sd: Tensor
    member_voxels: Tensor


def combine(
    found: Mapping[str, Tensor],
    brain: Tensor,
    fitted: Mapping[str, Any] | None = None,
    *,
    half: Tensor | None = None,
    threads: int = 1,
) -> Combined:
    """Join the features.

    Parameters
    ----------
    found : mapping of str to Tensor
        From `compute_features`. One that is missing counts as its mean in those the networks were
        fitted on.
    brain : Tensor, bool, (Z, Y, X)
    fitted : mapping, optional
        The networks, with the threshold and the errors of the delay; those of `calibration` by
        default. Without the latter two the threshold is .5, and `Combined.delay_sd` that between
        the members.
    half : Tensor, bool, (Z, Y, X), optional
        Which voxels are counted apart from the others, such as those on the right.
    threads : int
        Parts of the brain that are computed at once; the result is the same.

    Returns
    -------
    Combined
    """
    fitted = calibration() if fitted is None else fitted
    inside = torch.nonzero(brain.flatten()).squeeze(1)
    device = brain.device
    centre, scale = (torch.tensor(fitted[k], device=device)[:, None] for k in ('centre', 'scale'))
    *inner, (weight, bias) = _stack(fitted, device)
    threshold = float(fitted.get('threshold', 0.5))
    border = math.log(threshold / (1 - threshold))
    out = torch.zeros(4, brain.numel(), device=device)
    apart = torch.zeros_like(brain) if half is None else half
    used = {row: found[name] for row, name in enumerate(fitted['features']) if name in found}
    rows = [(row, values.flatten().float()) for row, values in used.items() if values.ndim]
    # A number of the patient is the same in all voxels; one that is missing counts as its mean.
    start = centre.clone()
    for row, value in used.items():
        if not value.ndim:
            start[row] = value

    def join(part: Tensor) -> Tensor:
        x = start.expand(-1, len(part)).clone()
        for row, values in rows:
            torch.index_select(values, 0, part, out=x[row])
        x.sub_(centre).div_(scale)
        late, logit, delay = torch.baddbmm(bias, weight, _pass(x, inner)).unbind(1)
        delay = softplus(delay)
        mean = delay.mean(0)
        between = (delay - mean).square().mean(0)
        seconds = mean.clamp_max(LONGEST_S)
        out[0, part], out[1, part], out[2, part] = late.mean(0), logit.mean(0).sigmoid(), seconds
        out[3, part] = (between + _error_of_delay(seconds, fitted).square()).sqrt()
        above, there = logit > border, apart.flatten()[part]
        return torch.stack([(above & ~there).sum(1), (above & there).sum(1)], 1)

    counts = run_all([partial(join, part) for part in inside.split(_CHUNK)], threads)
    empty = torch.zeros(len(weight), 2, dtype=torch.int64, device=device)
    late, probability, delay, spread = out.reshape(4, *brain.shape)
    return Combined(late, probability, delay, spread, sum(counts, empty))


def _error_of_delay(delay: Tensor, fitted: Mapping[str, Any]) -> Tensor:
    """Return the standard deviation in s of true minus computed delay: linear between bins."""
    if 'delay_spread' not in fitted:
        return torch.zeros_like(delay)
    edges, spread = (
        torch.tensor(fitted['delay_spread'][k], dtype=delay.dtype, device=delay.device)
        for k in ('edges', 'sd')
    )
    middle = (edges[1:] + edges[:-1]) / 2
    # Constant beyond the bins' centres, the first of which is repeated.
    middle, spread = torch.cat([middle[:1] - 1, middle]), torch.cat([spread[:1], spread])
    upper = torch.searchsorted(middle, delay.contiguous()).clamp(1, len(middle) - 1)
    share = ((delay - middle[upper - 1]) / (middle[upper] - middle[upper - 1])).clamp(0, 1)
    return spread[upper - 1] + share * (spread[upper] - spread[upper - 1])
