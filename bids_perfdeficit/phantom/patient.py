"""One digital stroke patient: the two scans and everything that is true of them.

Joins anatomy, arteries, flow, bolus and scanner. Knows nothing of files or scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_perfdeficit.phantom.anatomy import HU, Head, load_head
from bids_perfdeficit.phantom.arteries import Tree, grow
from bids_perfdeficit.phantom.bolus import Bolus
from bids_perfdeficit.phantom.disturbance import disturb
from bids_perfdeficit.phantom.flow import Flow, TissueState, feed, narrowing, slow_down
from bids_perfdeficit.phantom.physics import circulate
from bids_perfdeficit.phantom.render import Tubes, draw_tubes
from bids_perfdeficit.phantom.scanner import Grid, expose, make_grid, sample
from bids_perfdeficit.phantom.settings import (
    VOLTAGES,
    Occlusion,
    PersonSettings,
    ScanErrors,
    ScannerSettings,
)
from bids_perfdeficit.phantom.veins import make_veins
from bids_perfdeficit.phantom.warp import Warp, make_warp, rigid

Floats = NDArray[np.floating]

#: Delay that defines hypoperfusion, s (Albers et al., N Engl J Med 2018), and the relative flow
#: that defines the core.
HYPOPERFUSED, CORE_FLOW = 6.0, 0.3
#: Standard deviations of the movement between the phases of a CTA, degrees and mm.
PHASE_TURN, PHASE_SHIFT = 0.5, 0.7
#: Fall of attenuation in the core, HU per hour, and its limit in the first hours: net water
#: uptake of some 1 % per hour (Minnerup et al., Ann Neurol 2016) at 2.6 HU per percent, damped
#: by what reperfuses.
OEDEMA_RATE, OEDEMA_LIMIT = 1.3, 9.0
#: HU by which diseased white matter is darker.
DISEASED_HU = 9.0


@dataclass(frozen=True)
class Truth:
    """What is known of a patient. Images lie on the NCCT's grid unless they say otherwise.

    Attributes
    ----------
    delay : nibabel image
        Tmax-like delay, s, in the brain; 0 outside.
    hypoperfused, core, brain, vein, old_infarct : nibabel images
        Masks (uint8). Hypoperfused: delay over 6 s. Core: flow under 30 % of health.
    territory : nibabel image
        int16 labels: 2 * index + 1 on the left, 2 * index + 2 on the right, of
        `arteries.TERRITORIES`.
    flow : nibabel image
        Blood flow relative to health.
    artery : nibabel image
        Share of the voxel that is artery.
    enhancement : nibabel image
        CTA minus NCCT without noise or movement, HU: vessels and tissue.
    delay_template, territory_template, brain_template : nibabel images
        On the 2 mm grid of MNI152NLin2009aSym, before deformation.
    ncct_to_cta : (4, 4) array
        Rigid; mm of the NCCT to mm of the CTA.
    ncct_to_later : tuple of (4, 4) array
        The same to each later phase.
    warp : Warp
        Template mm to NCCT mm, and back.
    tree : Tree
    points : (N, 3) array
        The tree's nodes in NCCT mm.
    circulation : Flow
    volumes : dict
        mL of 'brain', 'hypoperfused', 'core'.
    """

    delay: nib.Nifti1Image
    hypoperfused: nib.Nifti1Image
    core: nib.Nifti1Image
    brain: nib.Nifti1Image
    vein: nib.Nifti1Image
    old_infarct: nib.Nifti1Image
    territory: nib.Nifti1Image
    flow: nib.Nifti1Image
    artery: nib.Nifti1Image
    enhancement: nib.Nifti1Image
    delay_template: nib.Nifti1Image
    territory_template: nib.Nifti1Image
    brain_template: nib.Nifti1Image
    ncct_to_cta: NDArray[np.float64]
    warp: Warp
    tree: Tree
    points: Floats
    circulation: Flow
    volumes: dict[str, float]
    ncct_to_later: tuple[NDArray[np.float64], ...] = ()


@dataclass(frozen=True)
class Patient:
    """A patient's scans and truth.

    Attributes
    ----------
    seed : int
    occlusion : Occlusion
    person : dict
        Age, sex, head size, variants of the arteries.
    scan : dict
        Phase, peak enhancement, thicknesses, tilt.
    ncct, cta : nibabel images
        int16 HU in their own scanner's mm.
    truth : Truth
    later : tuple of nibabel images
        Later phases of the CTA, as `ScannerSettings.later` asks for them.
    """

    seed: int
    occlusion: Occlusion
    person: dict[str, object]
    scan: dict[str, object]
    ncct: nib.Nifti1Image
    cta: nib.Nifti1Image
    truth: Truth
    later: tuple[nib.Nifti1Image, ...] = ()


@lru_cache(maxsize=1)
def _template_grid() -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return the 2 mm grid of MNI152NLin2009aSym as nilearn resamples it."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return image.affine, image.shape


def fill(volume: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give unknown voxels the value of the nearest known one, so that edges interpolate well."""
    index = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(volume[tuple(index)])


def make_patient(
    seed: int,
    occlusion: Occlusion | None = None,
    *,
    spacing: float = 1.0,
    scanner: ScannerSettings | None = None,
    person: PersonSettings | None = None,
) -> Patient:
    """Make one digital patient.

    Parameters
    ----------
    seed : int
        Sets everything that the other arguments leave open. The arteries, the head and the scans
        of one seed are the same with and without an occlusion.
    occlusion : Occlusion, optional
        None for open arteries.
    spacing : float
        In-plane voxel size of the NCCT, mm (the CTA's is a little finer), and slice thickness
        unless `scanner` sets it. 0.5 to 3.
    scanner : ScannerSettings, optional
    person : PersonSettings, optional

    Returns
    -------
    Patient

    Raises
    ------
    ValueError
        `spacing` lies outside 0.4 to 4 mm.
    """
    if not 0.4 <= spacing <= 4.0:
        raise ValueError(f'spacing is {spacing}; it must lie between 0.4 and 4 mm')
    occlusion = occlusion or Occlusion(site='none')
    scanner = scanner or ScannerSettings()
    person = person or PersonSettings()
    rng = np.random.default_rng([seed, 404])
    draws: dict[str, Any] = {
        'age': float(np.clip(rng.normal(71, 12), 25, 97)),
        'size': float(np.clip(rng.normal(0.925, 0.025), 0.85, 1.0)),
        'sex': str(rng.choice(['F', 'M'])),
        # Of 871 scans 60 % were early arterial, and in 1.5 % veins were brighter than arteries
        # (Pfaff et al., Eur Radiol 2021), which here they are from 4 s after the peak.
        'phase': float(np.clip(rng.normal(0.0, 2.0), -4, 12)),
        'peak': float(np.clip(rng.normal(360, 55), 230, 480)),
        'old': bool(rng.random() < 0.12),
    }
    streams = rng.spawn(6)
    age = draws['age'] if person.age is None else person.age
    size = draws['size'] if person.head_size is None else person.head_size
    old = draws['old'] if person.old_infarct is None else person.old_infarct
    phase = draws['phase'] if scanner.phase is None else scanner.phase
    peak = draws['peak'] if scanner.peak is None else scanner.peak
    iodine, contrast = VOLTAGES[scanner.cta_kvp]
    bolus = Bolus(peak=float(peak) * scanner.errors.gain * iodine, phase=float(phase))

    # The arteries are grown at 2 mm whatever the scan, so that one seed is one person.
    coarse = load_head(2.0)
    head = load_head(1.0) if spacing < 1.5 else coarse
    tree = grow(coarse, seed)
    decline = float(np.clip((float(age) - 45) / 45, 0, 1.2))
    warp = make_warp(
        streams[0], size=float(size), sd=person.warp_mm, ventricle_growth=2.2 * decline
    )
    points = warp.forward(tree.points)
    voxels = np.argwhere(coarse.brain)
    where = coarse.affine[:3, 3] + voxels * coarse.affine[0, 0]
    feeding = feed(tree, where)
    kept = narrowing(tree, person.stenosis_side, person.stenosis) if person.stenosis else None
    circulation, state = circulate(
        tree, points, occlusion, feeding, coarse, seed=seed, physics=person.physics, kept=kept
    )
    diseased = None
    if person.leukoaraiosis is not None:
        diseased = _diseased(coarse, person.leukoaraiosis, seed)
        state = slow_down(state, diseased[coarse.brain])
    labels = tree.territory[feeding.terminals[:, 0]].astype(np.int16)

    delay = _spread(state.delay, coarse)
    relative = _spread(state.flow, coarse)
    infarct = _old_infarct(coarse, streams[1]) if old else np.zeros(coarse.brain.shape, np.float32)
    attenuation = _attenuation(
        head, coarse, relative, infarct, occlusion, decline, streams[2], diseased
    )

    def enhancement(moment: Bolus) -> NDArray[np.float32]:
        rise = _tissue_enhancement(state, moment, coarse, infarct)
        if head is coarse:
            return rise
        return np.asarray(_finer(rise, coarse, head) * np.clip(head.grey + head.white, 0, 1))

    gain = enhancement(bolus)
    plain = _at_voltage(attenuation, head, iodine, contrast)
    arteries_plain, arteries_filled = artery_tubes(tree, circulation, points, bolus)
    veins_plain, veins_filled = vein_tubes(coarse, seed, warp, where, state, bolus)
    plaques = _plaques(tree, points, float(age), streams[3])

    thickness = scanner.ncct_thickness or spacing
    corners = scan_corners(warp, lowest=-82.0)
    ncct_grid = make_grid(corners, spacing, thickness, tilt=scanner.tilt)
    motion = np.eye(4)
    if scanner.motion:
        motion = rigid(streams[4].normal(0, 3.0, 3), streams[4].normal(0, 4.0, 3), corners.mean(0))
    cta_spacing = spacing * 0.92
    cta_corners = scan_corners(warp, lowest=-109.0) @ motion[:3, :3].T + motion[:3, 3]
    cta_grid = make_grid(cta_corners, cta_spacing, scanner.cta_thickness or cta_spacing)

    def scan_cta(
        moved: NDArray[np.float64], tissue: NDArray[np.float32], filled: Tubes,
        noise: np.random.Generator,
    ) -> nib.Nifti1Image:  # fmt: skip
        back = np.linalg.inv(moved)

        def to_head(p: Floats) -> Floats:
            still = p @ back[:3, :3].T.astype(p.dtype) + back[:3, 3].astype(p.dtype)
            return warp.inverse(still)

        scan = expose(
            cta_grid, to_head, head, plain + tissue, _move(filled, moved),
            noise=scanner.cta_noise, psf=scanner.psf, rng=noise,
        )  # fmt: skip
        if scanner.errors != ScanErrors():
            edges = np.stack([cta_corners.min(0), cta_corners.max(0)])
            scan = np.rint(disturb(scan, cta_grid.affine, edges, scanner.errors, noise)).astype(
                np.int16
            )
        return to_image(scan, cta_grid)

    ncct = expose(
        ncct_grid, warp.inverse, head, attenuation, _join(arteries_plain, veins_plain, plaques),
        noise=scanner.ncct_noise, psf=scanner.psf, rng=streams[5],
    )  # fmt: skip
    cta = scan_cta(motion, gain, _join(arteries_filled, veins_filled, plaques), streams[5])
    later, motions = [], []
    for number, after in enumerate(scanner.later):
        # A stream of its own, so that the other scans do not depend on how many phases follow.
        stream = np.random.default_rng([seed, 405, number])
        moved = motion
        if scanner.motion:
            moved = motion @ rigid(
                stream.normal(0, PHASE_TURN, 3), stream.normal(0, PHASE_SHIFT, 3), corners.mean(0)
            )
        moment = replace(bolus, phase=bolus.phase + after)
        tubes = (
            artery_tubes(tree, circulation, points, moment)[1],
            vein_tubes(coarse, seed, warp, where, state, moment)[1],
        )
        tissue = enhancement(moment)
        later.append(scan_cta(moved, tissue, _join(*tubes, plaques), stream))
        motions.append(moved)

    truth = _truth(
        ncct_grid, warp, head, coarse, delay, relative, labels, infarct, gain,
        arteries_filled, veins_filled, arteries_plain, veins_plain, motion, tree, points,
        circulation, tuple(motions),
    )  # fmt: skip
    return Patient(
        seed=seed,
        occlusion=occlusion,
        person={
            'age': round(float(age)),
            'sex': draws['sex'],
            'head_size': float(size),
            'variants': tree.variants,
            'old_infarct': bool(old),
            'physics': person.physics,
            **(
                {'stenosis': person.stenosis, 'stenosis_side': person.stenosis_side}
                if person.stenosis
                else {}
            ),
            **({'leukoaraiosis': person.leukoaraiosis} if diseased is not None else {}),
        },
        scan={
            'phase': float(phase),
            'peak': float(peak),
            'ncct_thickness': float(thickness),
            'cta_thickness': float(cta_grid.spacing[2]),
            'tilt': scanner.tilt,
            **({'cta_kvp': scanner.cta_kvp} if scanner.cta_kvp != 120 else {}),
            **({'later': list(scanner.later)} if scanner.later else {}),
        },
        ncct=to_image(ncct, ncct_grid),
        cta=cta,
        truth=truth,
        later=tuple(later),
    )


def to_image(data: NDArray[np.generic], grid: Grid) -> nib.Nifti1Image:
    """Return values on a scan's grid as an image."""
    image = nib.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units('mm', 'sec')
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1, strip_shears=True)
    return image


def _spread(values: NDArray[np.float32], coarse: Head) -> NDArray[np.float32]:
    """Values of the brain's voxels as a volume without an edge."""
    volume = np.zeros(coarse.brain.shape, np.float32)
    volume[coarse.brain] = values
    return fill(volume, coarse.brain)


def _finer(volume: NDArray[np.float32], coarse: Head, head: Head) -> NDArray[np.float32]:
    ratio = head.affine[0, 0] / coarse.affine[0, 0]
    return np.asarray(
        ndimage.affine_transform(
            volume, np.diag([ratio] * 3), output_shape=head.brain.shape, order=1, mode='nearest'
        ),
        np.float32,
    )


def scan_corners(warp: Warp, *, lowest: float) -> Floats:
    """Points that the field of view must hold: the head with a little air, from `lowest` up."""
    grid = np.array(
        [(x, y, z) for x in (-93, 0, 93) for y in (-124, 0, 100) for z in (lowest, 0, 99)], float
    )
    moved = warp.forward(grid)
    low, high = moved.min(0), moved.max(0)
    # Slices begin at the level of the lowest point on the axis, not of the lowest corner.
    axis = warp.forward(np.array([[0.0, -20, lowest], [0, -20, 99]]))
    low[2], high[2] = axis[0, 2], axis[1, 2]
    return np.stack([low, high])


def _old_infarct(coarse: Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a cortical or deep scar: share of the voxel lost."""
    inside = np.argwhere(coarse.grey > 0.5)
    centre = inside[rng.integers(len(inside))] * coarse.affine[0, 0]
    grid = np.indices(coarse.brain.shape, dtype=np.float32) * np.float32(coarse.affine[0, 0])
    radius = float(rng.uniform(6, 18))
    gap = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    rough = ndimage.gaussian_filter(rng.standard_normal(coarse.brain.shape), 3.0)
    edge = radius - gap + 5 * rough / rough.std()
    return np.asarray(np.clip(edge / 3 + 0.5, 0, 1) * coarse.brain, np.float32)


def _diseased(coarse: Head, extent: float, seed: int) -> NDArray[np.float32]:
    """Return the share of each voxel that is diseased white matter: about the ventricles."""
    rng = np.random.default_rng([seed, 406])
    reach = 2.0 + 16.0 * extent  # mm, from a rim to confluence
    spacing = coarse.affine[0, 0]
    gap = ndimage.distance_transform_edt(coarse.ventricles < 0.5, sampling=spacing)
    rough = ndimage.gaussian_filter(rng.standard_normal(coarse.brain.shape), 4.0 / spacing)
    edge = reach * (1 + 0.4 * rough / rough.std()) - gap
    share = np.clip(edge / 4 + 0.5, 0, 1) * coarse.white * coarse.brain
    return np.asarray(share if extent > 0 else np.zeros_like(share), np.float32)


def _at_voltage(
    attenuation: NDArray[np.float32], head: Head, iodine: float, contrast: float
) -> NDArray[np.float32]:
    """Return HU without contrast at another tube voltage than that of the NCCT."""
    if iodine == contrast == 1:
        return attenuation
    middle = (HU['grey'] + HU['white']) / 2
    tissue = head.brain & (attenuation > HU['csf'] + 8) & (attenuation < 60)
    out = attenuation.copy()
    out[tissue] = middle + contrast * (attenuation[tissue] - middle)
    # Calcium gains about half as much as iodine.
    bone = attenuation > 100
    out[bone] = 100 + (1 + iodine) / 2 * (attenuation[bone] - 100)
    return out


def _attenuation(
    head: Head,
    coarse: Head,
    relative: NDArray[np.float32],
    infarct: NDArray[np.float32],
    occlusion: Occlusion,
    decline: float,
    rng: np.random.Generator,
    diseased: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """HU of everything but the vessels, without contrast, on the head's grid."""
    spacing = head.affine[0, 0]
    grey, white = head.grey, head.white
    # Sulci: each person's own, wider with age.
    grain = ndimage.gaussian_filter(
        rng.standard_normal(grey.shape, dtype=np.float32), 1.7 / spacing
    )
    grain /= grain[head.brain].std()
    rim = np.exp(-((np.clip(-head.depth, 0, None) / 5.0) ** 2)) * grey
    open_sulcus = np.clip(0.30 * (grain - 0.7 + 0.6 * decline), 0, 0.8) * rim
    keep = 1 - open_sulcus
    severity = np.clip((0.38 - relative) / 0.25, 0, 1)
    fall = np.float32(min(OEDEMA_RATE * occlusion.onset_hours, OEDEMA_LIMIT)) * severity
    if head is not coarse:
        fall, infarct = _finer(fall, coarse, head), _finer(infarct, coarse, head)
    swollen = fall * np.where(grey + white > 0, 0.7 + 0.5 * grey, 0)
    texture = ndimage.gaussian_filter(
        rng.standard_normal(grey.shape, dtype=np.float32), 2.5 / spacing
    )
    texture /= texture[head.brain].std()
    tissue = (grey * (HU['grey'] + 0.8 * texture) + white * (HU['white'] + 0.6 * texture)) * keep
    # Periventricular white matter pales with age.
    pale = (
        5.0
        * decline
        * white
        * np.exp(-ndimage.distance_transform_edt(head.ventricles < 0.5, sampling=spacing) / 6.0)
    )
    fluid = (1 - (grey + white) * keep) * HU['csf']
    if diseased is not None:
        diseased = diseased if head is coarse else _finer(diseased, coarse, head)
        pale = np.maximum(pale, DISEASED_HU * diseased * white)
    brain = tissue + fluid - swollen - pale
    brain += infarct * (9.0 - brain)
    # The falx and the calcified pineal gland.
    x, y, z = np.ogrid[tuple(slice(0, n) for n in grey.shape)]
    x, y, z = (a * spacing + head.affine[i, 3] for i, a in enumerate((x, y, z)))
    sheet = np.clip(1.3 - np.abs(x), 0, 1) * (1 - (grey + white)) * (1 - head.ventricles)
    sheet = sheet * ((z > 32) | (y < -62) | (y > 48))
    brain += 0.75 * sheet * (HU['dura'] - brain)
    if rng.random() < 0.3 + 0.4 * decline:
        for cx, cy, cz, r in ((0, -28, 1, 2.6), (22, -40, 7, 3.0), (-22, -40, 7, 3.0)):
            spot = np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2)
            brain += np.clip(r - spot, 0, 1) * rng.uniform(40, 160)
    return np.where(head.brain, brain, head.shell).astype(np.float32)


def _tissue_enhancement(
    state: TissueState, bolus: Bolus, coarse: Head, infarct: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Parenchymal enhancement, HU: blood volume times the contrast in its capillaries."""
    # Capillary blood has a lower haematocrit, but the contrast is in the plasma.
    blood = bolus.blood(state.arrival, np.maximum(state.mtt, 0.05))
    gain = np.zeros(coarse.brain.shape, np.float32)
    gain[coarse.brain] = 0.55 * state.cbv / 100 * 1.04 * blood
    # Dura, skin and muscle enhance too.
    soft = (~coarse.brain) & (coarse.shell > 20) & (coarse.shell < 120)
    gain[soft] = 0.03 * bolus.peak
    return gain * (1 - 0.8 * infarct)


def artery_tubes(tree: Tree, flow: Flow, points: Floats, bolus: Bolus) -> tuple[Tubes, Tubes]:
    """Return the arteries as tubes with HU: without contrast, the thick ones, and with it, all."""
    child = np.flatnonzero((tree.parent >= 0) & ((tree.kind < 2) | (tree.radius > 0.15)))
    parent = tree.parent[child]
    dispersion = 0.1 + 0.3 * np.maximum(flow.arrival, 0)
    filled = HU['blood'] + bolus.blood(flow.arrival, dispersion)
    # A clot holds no contrast and is denser than blood.
    contrast = np.where(flow.blocked[child], HU['clot'], (filled[child] + filled[parent]) / 2)
    plain = np.where(flow.blocked[child], HU['clot'], HU['blood'])
    starts, ends, radii = [points[parent]], [points[child]], [tree.radius[child]]
    values, plains = [contrast], [plain]
    for pair, radius, index in (
        (tree.links, tree.link_radius, 1),
        (tree.anastomoses, np.full(len(tree.anastomoses), 0.12), 0),
    ):
        if len(pair):
            starts.append(points[pair[:, 0]])
            ends.append(points[pair[:, 1]])
            radii.append(radius)
            values.append(filled[pair].mean(1) if index else filled[pair].min(1))
            plains.append(np.full(len(pair), HU['blood']))
    start, end, radius = np.vstack(starts), np.vstack(ends), np.concatenate(radii)
    thick = radius > 0.35
    return (
        Tubes(start[thick], end[thick], radius[thick], np.concatenate(plains)[thick]),
        Tubes(start, end, radius, np.concatenate(values)),
    )


def vein_tubes(
    coarse: Head, seed: int, warp: Warp, where: Floats, state: TissueState, bolus: Bolus
) -> tuple[Tubes, Tubes]:
    """Return the veins as tubes with HU: without contrast, and with it."""
    veins = make_veins(coarse, seed)
    start, end = warp.forward(veins.start), warp.forward(veins.end)
    # A vein carries what the tissue around it lets through.
    near = cKDTree(where[::7]).query((veins.start + veins.end) / 2, k=60)[1] * 7
    large = veins.radius > 1.6
    arrival = np.where(large, np.median(state.arrival), state.arrival[near].mean(1))
    transit = np.where(large, np.median(state.mtt), state.mtt[near].mean(1))
    filled = HU['blood'] + 6 + bolus.blood(arrival + veins.late + 0.4 * transit, transit)
    plain = np.full(len(start), HU['blood'] + 6)
    return (
        Tubes(start, end, veins.radius, plain),
        Tubes(start, end, veins.radius, filled),
    )


def _plaques(tree: Tree, points: Floats, age: float, rng: np.random.Generator) -> Tubes:
    """Calcified plaques in the walls of the carotid siphons and vertebral arteries."""
    start, end, radius, value = [], [], [], []
    chance = np.clip((age - 45) / 40, 0, 1)
    for name in ('ICA-L', 'ICA-R', 'VA-L', 'VA-R'):
        nodes = tree.nodes(name)
        part = nodes[int(0.6 * len(nodes)) : -2] if name.startswith('ICA') else nodes[-20:-8]
        for node in part:
            if rng.random() < 0.22 * chance:
                away = rng.standard_normal(3)
                away *= tree.radius[node] * 0.9 / np.linalg.norm(away)
                start.append(points[node] + away)
                end.append(points[tree.parent[node]] + away)
                radius.append(rng.uniform(0.4, 1.0))
                value.append(rng.uniform(0.8, 1.8) * HU['calcium'])
    return Tubes(
        np.array(start).reshape(-1, 3), np.array(end).reshape(-1, 3), np.array(radius),
        np.array(value),
    )  # fmt: skip


def _join(*parts: Tubes) -> Tubes:
    return Tubes(
        np.vstack([p.start for p in parts]),
        np.vstack([p.end for p in parts]),
        np.concatenate([p.radius for p in parts]),
        np.concatenate([p.value for p in parts]),
    )


def _move(tubes: Tubes, matrix: Floats) -> Tubes:
    def move(p: Floats) -> Floats:
        return p @ matrix[:3, :3].T + matrix[:3, 3]

    return Tubes(move(tubes.start), move(tubes.end), tubes.radius, tubes.value)


def _truth(
    grid: Grid,
    warp: Warp,
    head: Head,
    coarse: Head,
    delay: NDArray[np.float32],
    relative: NDArray[np.float32],
    labels: NDArray[np.int16],
    infarct: NDArray[np.float32],
    gain: NDArray[np.float32],
    arteries: Tubes,
    veins: Tubes,
    arteries_plain: Tubes,
    veins_plain: Tubes,
    motion: NDArray[np.float64],
    tree: Tree,
    points: Floats,
    circulation: Flow,
    motions: tuple[NDArray[np.float64], ...],
) -> Truth:
    territory = np.zeros(coarse.brain.shape, np.int16)
    territory[coarse.brain] = labels
    territory = np.asarray(fill(territory, coarse.brain), np.int16)  # type: ignore[arg-type]
    on_coarse = sample(grid, warp.inverse, coarse, [delay, relative, infarct], [0.0, 1.0, 0.0])
    named = sample(grid, warp.inverse, coarse, [territory], [0], order=0)[0]  # type: ignore[list-item]
    fine = sample(grid, warp.inverse, head, [head.brain.astype(np.float32), gain], [0.0, 0.0])
    brain = fine[0] > 0.5
    seconds = on_coarse[0] * brain
    share_a, value_a = draw_tubes(grid.shape, grid.affine, arteries)
    share_v, value_v = draw_tubes(grid.shape, grid.affine, veins)
    rise = fine[1]
    rise += share_a * (value_a - HU['blood'] - rise)
    rise += np.where(share_v > share_a, share_v * (value_v - HU['blood'] - 6 - rise), 0)
    hypoperfused = brain & (seconds > HYPOPERFUSED)
    core = brain & (on_coarse[1] < CORE_FLOW)
    ml = float(abs(np.linalg.det(grid.affine[:3, :3])) / 1000)

    affine, shape = _template_grid()
    template = Grid(np.asarray(affine, float), shape)
    in_template = sample(template, lambda p: p, coarse, [delay], [0.0])[0]
    names = sample(template, lambda p: p, coarse, [territory], [0], order=0)[0]  # type: ignore[list-item]
    mask = sample(template, lambda p: p, coarse, [coarse.brain.astype(np.float32)], [0.0])[0] > 0.5
    return Truth(
        delay=to_image(seconds.astype(np.float32), grid),
        hypoperfused=to_image(hypoperfused.astype(np.uint8), grid),
        core=to_image(core.astype(np.uint8), grid),
        brain=to_image(brain.astype(np.uint8), grid),
        vein=to_image((share_v > 0.5).astype(np.uint8), grid),
        old_infarct=to_image((on_coarse[2] > 0.5).astype(np.uint8), grid),
        territory=to_image((named * brain).astype(np.int16), grid),
        flow=to_image((on_coarse[1] * brain).astype(np.float32), grid),
        artery=to_image(share_a, grid),
        enhancement=to_image(rise.astype(np.float32), grid),
        delay_template=to_image((in_template * mask).astype(np.float32), template),
        territory_template=to_image((names * mask).astype(np.int16), template),
        brain_template=to_image(mask.astype(np.uint8), template),
        ncct_to_cta=motion,
        warp=warp,
        tree=tree,
        points=points,
        circulation=circulation,
        volumes={
            'brain': float(brain.sum() * ml),
            'hypoperfused': float(hypoperfused.sum() * ml),
            'core': float(core.sum() * ml),
        },
        ncct_to_later=motions,
    )
