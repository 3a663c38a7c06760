"""The methods text is there in four forms, with the references that it cites and no others."""

from __future__ import annotations

import re

from bids_perfdeficit.reports.citation import write_citation

TEXT = (
    'Maps were made by *spatial* [@deficit; @ants], 5 % of 2 & 3 by @nipype.\n\nIn sub_01 & {x}.'
)


def test_each_form_has_the_text_and_the_references_that_it_cites(tmp_path):
    files = {path.suffix: path.read_text() for path in write_citation(TEXT, tmp_path)}
    assert set(files) == {'.md', '.html', '.tex', '.bib'}
    assert TEXT in files['.md']
    assert files['.md'].count('\n1. Tangwiriyasakul') == 1
    assert '[1, 2]' in files['.html']
    assert '&amp; {x}' in files['.html']
    assert files['.html'].count('<li>') == 3
    cited = r'\emph{spatial} \citep{deficit,ants}, 5 \% of 2 \& 3 by \citet{nipype}'
    assert cited in files['.tex']
    assert r'sub\_01 \& \{x\}' in files['.tex']
    assert re.findall(r'^@\w+\{(\w+),', files['.bib'], re.M) == ['deficit', 'ants', 'nipype']
