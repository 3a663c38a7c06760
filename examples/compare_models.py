"""Compare deficit models on a cohort whose substrates are known.

The cohort is small, for an example: expect ridge and spatial to find the sides, not the regions.

Run: python examples/compare_models.py
"""

from __future__ import annotations

import torch

from bids_perfdeficit import deficit, phantom

ITEMS = (deficit.Item('5a', 5, '5b'), deficit.Item('5b', 5, '5a'), deficit.Item('9', 4))


def main() -> None:
    cohort = phantom.make_cohort(4, 60, trees=3, mix={'M1': 0.5, 'M2sup': 0.2, 'none': 0.3})
    grid = deficit.Grid(cohort.mask, cohort.affine)
    scores = cohort.scores[[f'nihss_{item.name}' for item in ITEMS]].to_numpy(float)
    truths = phantom.substrates(spacing=2)
    settings = deficit.DeficitSettings(permutations=100)
    prepared = deficit.prepare(cohort.perfusion, grid, settings)
    print('model    item  p      declared mL  of it right  AUC held out  of volume alone')
    for model in ('spatial', 'ridge'):
        fit = deficit.fit(
            prepared, scores, mask=grid, items=ITEMS, model=model, settings=settings
        )  # fmt: skip
        held_out = deficit.cross_validate(
            prepared, scores, items=ITEMS, model=model, settings=settings, folds=3
        )  # fmt: skip
        for k, item in enumerate(ITEMS):
            declared, truth = fit.declared[k], truths[item.name][cohort.mask]
            right = (declared & truth).sum() / declared.sum() if declared.any() else float('nan')
            print(
                f'{model:8} {item.name:5} {fit.p_value[k]:<6.3f} '
                f'{declared.sum() * grid.voxel_ml:<12.1f} {right:<12.2f} '
                f'{held_out.of(item.name).auc:<13.2f} {held_out.of(item.name, "volume").auc:.2f}'
            )


if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
