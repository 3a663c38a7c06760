"""The options of the deficit models. Standard library only; must not know where they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

#: How much later than its mirror image a voxel with a deficit is, in units of the map.
DEFICIT_THRESHOLD = 0.2
#: How much later than healthy tissue a voxel of the volume of a deficit is, in units of the map.
#: Of .2, .3 and .4 the last came nearest to the volume of a delay above 6 s in 80 digital patients
#: (benchmarks/RESULTS.md).
VOLUME_THRESHOLD = 0.4
#: Share of a voxel above which it is affected, in maps that users give: a lesion has most of it.
AFFECTED_SHARE = 0.5
#: Fewest participants who must be affected in a voxel of such maps: as `min_deficits` on the side
#: of the scores. With fewer a single patient decides what the voxel shows.
LEAST_AFFECTED = 5


@dataclass(frozen=True)
class DeficitSettings:
    """How substrates are inferred, and how far they are trusted.

    Parameters
    ----------
    coarse_spacing : float
        mm of the grid that models are fitted on; finer maps are averaged down to it and the
        results evaluated on the fine grid again.
    rank : int
        Largest number of latent directions of the generative model of perfusion maps.
    radii, spacings : tuple of float
        mm: radii of the spherical ROIs that form substrates of the spatial model, and for each
        the distance between neighbouring centres.
    components : int
        Largest number of spherical ROIs (single effects) per item; those without evidence are
        dropped.
    temperature : float
        Power in (0, 1] that the likelihood has where the region of a component is inferred. Below
        1 it compensates for links, noise and registration that differ from the model's.
    lapse : float
        Share of scores that carry no information (typing errors, old deficits).
    pair_independence : float
        Prior probability that the two items of a left-right pair do not mirror each other.
    iterations : int
        Sweeps over the components.
    permutations : int
        Scores drawn under the null for the test of each item; 0 leaves it out and
        then nothing is declared by the models that need it.
    alpha : float
        Family-wise error rate per item, over the whole brain, at which voxels may be declared.
    min_participants, min_deficits : int
        An item with fewer scored participants, or fewer with any deficit (or without), is skipped.
    smoothing : tuple of float
        mm: standard deviations of the prior of `ridge` that the evidence chooses from.
    voxelwise_permutations : int
        Shuffles of the max-T test.
    vae_epochs, vae_batch, vae_latents : int
        Training of the published model: passes, participants per step, latent size.
    vae_learning_rate, vae_weight_decay : float
        Of its Adamax optimiser.
    vae_spacing : float
        mm of its grid; it needs the memory of a dense convolutional network.
    simulations : int
        Items that are simulated to train the network of `deep`.
    network_steps : int
        Steps of its training.
    device : str
        Torch device.
    seed : int
        Of everything random.
    as_given : bool
        Maps are used as they are: neither denoised nor compared with a healthy pattern or with
        their mirror image. For lesion masks, whose 0 is unaffected tissue in every participant.
    """

    coarse_spacing: float = 4.0
    rank: int = 200
    # No larger sphere: one of 20 mm was selected wherever two pieces were near each other, and for
    # single pieces of 11 mm too; without it Dice rose from .26 to .29 (N 300) and from .36 to .43
    # (N 1,000), and false discoveries fell by .15 (benchmarks/RESULTS.md).
    radii: tuple[float, ...] = (5.0, 7.0, 10.0, 14.0)
    spacings: tuple[float, ...] = (4.0, 6.0, 6.0, 8.0)
    components: int = 3
    temperature: float = 0.5
    lapse: float = 0.03
    pair_independence: float = 0.1
    iterations: int = 10
    permutations: int = 500
    alpha: float = 0.01
    min_participants: int = 20
    min_deficits: int = 5
    smoothing: tuple[float, ...] = (6.0, 10.0, 16.0)
    voxelwise_permutations: int = 1000
    vae_epochs: int = 4000
    vae_batch: int = 10
    vae_latents: int = 50
    vae_learning_rate: float = 1e-4
    vae_weight_decay: float = 1e-5
    vae_spacing: float = 6.0
    simulations: int = 800
    network_steps: int = 3000
    device: str = 'cpu'
    seed: int = 20260101
    as_given: bool = False

    def __post_init__(self) -> None:
        if len(self.radii) != len(self.spacings):
            raise ValueError('radii and spacings must have one value each per size of sphere')
        if not 0 < self.temperature <= 1:
            raise ValueError('temperature must lie in (0, 1]')
        if not 0 < self.alpha < 1:
            raise ValueError('alpha must lie in (0, 1)')
        if not 0 <= self.lapse < 1:
            raise ValueError('lapse must lie in [0, 1)')

    @classmethod
    def for_run(
        cls, *, seed: int, device: str = 'cpu', sloppy: bool = False, as_given: bool = False
    ) -> DeficitSettings:
        """Return the settings of a run of the group level.

        Parameters
        ----------
        seed : int
        device : str
        sloppy : bool
            Few permutations, sweeps and epochs, for trying things out and never for results.
        as_given : bool
            Whether users gave the maps.
        """
        settings = cls(seed=seed, device=device, as_given=as_given)
        return replace(settings, **_SLOPPY) if sloppy else settings


#: What ``--sloppy`` changes. A test with 99 permutations reaches p = .01 exactly.
_SLOPPY: dict[str, Any] = {
    'permutations': 99, 'voxelwise_permutations': 99, 'iterations': 4, 'vae_epochs': 20,
    'rank': 50, 'simulations': 40, 'network_steps': 300,
}  # fmt: skip
