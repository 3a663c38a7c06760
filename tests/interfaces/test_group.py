"""What the interfaces of the group level leave to Nipype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nipype import config
from nipype.pipeline import engine as pe

from bids_perfdeficit import deficit
from bids_perfdeficit.interfaces import group
from bids_perfdeficit.pipeline import CohortData


def test_training_finds_the_checkpoint_of_a_run_that_was_killed(tmp_path, monkeypatch):
    prepared, data = tmp_path / 'prepared.pkl', tmp_path / 'data.npz'
    prepared.touch()
    CohortData(('01',), (), np.zeros((1, 0)), np.zeros((1, 0))).save(data)
    node = pe.Node(
        group.FitModel(prepared=str(prepared), data=str(data), model='vae', seed=1),
        name='fit',
        base_dir=str(tmp_path / 'work'),
    )
    node.config = {**config._sections}
    folder = Path(node.output_dir())
    folder.mkdir(parents=True)
    (folder / 'checkpoint.pt').write_text('half way')
    method = node.config['execution']['hash_method']
    # what Nipype leaves of a node that was killed
    (folder / f'_0x{node.inputs.get_hashval(hash_method=method)[1]}_unfinished.json').touch()
    found = []

    def fit(*_, checkpoint, **__):
        found.append(Path(checkpoint).read_text())
        raise ValueError('enough')

    class Nothing:
        def __init__(self, *_):
            self.grid = None

    monkeypatch.setattr(deficit, 'fit', fit)
    monkeypatch.setattr(group, '_prepared', Nothing)
    with pytest.raises(Exception, match='enough'):
        node.run()
    assert found == ['half way']
