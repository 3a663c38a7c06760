"""When the likely site of an occlusion may be reported.

A site is reported only if the regions and trunks look as they do in digital patients with that
site; if its side is the later one; and if it is still the answer after errors that scans have and
nothing shows: a shading that the reference field leaves, a millimetre of movement. Must not know
how a finding came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bids_perfdeficit.perfusion.occlusion import OcclusionFinding

#: Sites that are interchangeable where a clot reaches from one into the other. A finding that
#: changes between them holds. The basilar artery ends in both posterior cerebral arteries.
NEIGHBOURS = (frozenset({'ICA', 'M1'}), frozenset({'M1', 'M2'}), frozenset({'PCA', 'BA'}))
#: mL by which the other side may be later before the two are at odds, and that must be late for an
#: artery to be called occluded: less is noise.
TOLERANCE_ML = 1.0


@dataclass(frozen=True)
class ReadOut:
    """What is found when the scans are changed by an error that they may have.

    Attributes
    ----------
    condition : str
        The change, as a reason ends: ``'a shading of +1 HU'``.
    site, side : str
        As in `OcclusionFinding`.
    """

    condition: str
    site: str
    side: str


def holds(site: str, side: str, other: ReadOut) -> bool:
    """Return whether a read-out agrees with a site and side."""
    if 'n/a' not in (side, other.side) and other.side != side:
        return False
    return other.site == site or any({site, other.site} <= both for both in NEIGHBOURS)


def withhold(
    finding: OcclusionFinding, volumes: Sequence[float], others: Sequence[ReadOut] = ()
) -> str:
    """Return why a finding must not be reported; empty when it may be.

    Parameters
    ----------
    finding : OcclusionFinding
        Also one of open arteries, which must look like open arteries, and be likelier than not.
    volumes : sequence of two float
        Hypoperfused mL on the left and on the right.
    others : sequence of ReadOut
        Read-outs of the scans with errors added.

    Returns
    -------
    str
        A clause without a full stop.

    Examples
    --------
    >>> from dataclasses import replace
    >>> found = OcclusionFinding('M2', 'left', 0.9, 0.95, 'none', 'n/a', 0.05)
    >>> withhold(found, (3.0, 564.0))
    'left M2 was found, but the right side is the later one (564 against 3 mL)'
    >>> withhold(found, (0.3, 0.0))
    'left M2 was found, but no tissue is hypoperfused'
    >>> withhold(found, (60.0, 2.0), [ReadOut('a shading of +1 HU', 'none', 'n/a')])
    'left M2 does not hold under a shading of +1 HU (no occlusion then)'
    >>> withhold(found, (60.0, 2.0), [ReadOut('a shading of +1 HU', 'M2', 'left')])
    ''
    >>> withhold(replace(found, distance=90.0, distance_limit=70.0), (60.0, 2.0))
    'left M2 was found, but the regions and trunks are unlike those of digital patients with it'
    """
    name = _name(finding.site, finding.side)
    if finding.distance > finding.distance_limit:
        return (
            f'{name} was found, but the regions and trunks are unlike those of digital patients '
            'with it'
        )
    if finding.site == 'none':
        if finding.occluded > 0.5:
            return 'no occlusion is the likeliest outcome, but all sites together are likelier'
        return ''
    if max(volumes) < TOLERANCE_ML:
        return f'{name} was found, but no tissue is hypoperfused'
    if finding.side in ('left', 'right'):
        here, there = volumes if finding.side == 'left' else tuple(volumes)[::-1]
        if there > here + TOLERANCE_ML:
            later = 'right' if finding.side == 'left' else 'left'
            return (
                f'{name} was found, but the {later} side is the later one '
                f'({there:.0f} against {here:.0f} mL)'
            )
    for other in others:
        if not holds(finding.site, finding.side, other):
            return (
                f'{name} does not hold under {other.condition} '
                f'({_name(other.site, other.side)} then)'
            )
    return ''


def _name(site: str, side: str) -> str:
    if site == 'none':
        return 'no occlusion'
    return f'{side} {site}' if side in ('left', 'right') else site
