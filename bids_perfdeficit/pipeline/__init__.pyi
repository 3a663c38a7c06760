from .calibration import (
    COMPARED as COMPARED,
)
from .calibration import (
    SAMPLED as SAMPLED,
)
from .calibration import (
    Sample as Sample,
)
from .calibration import (
    calibration_content as calibration_content,
)
from .calibration import (
    compare_calibrations as compare_calibrations,
)
from .calibration import (
    make_pairs as make_pairs,
)
from .calibration import (
    refit_pairs as refit_pairs,
)
from .calibration import (
    sample_pair as sample_pair,
)
from .cohort import (
    MAP_SPACING as MAP_SPACING,
)
from .cohort import (
    RECIPE as RECIPE,
)
from .cohort import (
    CohortData as CohortData,
)
from .cohort import (
    GroupOutput as GroupOutput,
)
from .cohort import (
    add_territories as add_territories,
)
from .cohort import (
    applied_outputs as applied_outputs,
)
from .cohort import (
    apply_model as apply_model,
)
from .cohort import (
    check_given as check_given,
)
from .cohort import (
    check_grids as check_grids,
)
from .cohort import (
    cohort_outputs as cohort_outputs,
)
from .cohort import (
    cohort_table as cohort_table,
)
from .cohort import (
    draw_cohort as draw_cohort,
)
from .cohort import (
    fit_model as fit_model,
)
from .cohort import (
    fit_outputs as fit_outputs,
)
from .cohort import (
    fit_resampled as fit_resampled,
)
from .cohort import (
    fit_shuffled as fit_shuffled,
)
from .cohort import (
    make_lattice as make_lattice,
)
from .cohort import (
    match_cohort as match_cohort,
)
from .cohort import (
    merge_validation as merge_validation,
)
from .cohort import (
    null_outputs as null_outputs,
)
from .cohort import (
    on_template as on_template,
)
from .cohort import (
    prepare_cohort as prepare_cohort,
)
from .cohort import (
    stability_outputs as stability_outputs,
)
from .cohort import (
    stack_cohort as stack_cohort,
)
from .cohort import (
    validate_fold as validate_fold,
)
from .cohort import (
    validate_model as validate_model,
)
from .cohort import (
    validation_outputs as validation_outputs,
)
from .ctp import (
    SplitSeries as SplitSeries,
)
from .ctp import (
    split_series as split_series,
)
from .evaluation import (
    MAPS as MAPS,
)
from .evaluation import (
    MEASURES as MEASURES,
)
from .evaluation import (
    Evaluation as Evaluation,
)
from .evaluation import (
    Reference as Reference,
)
from .evaluation import (
    evaluate_patient as evaluate_patient,
)
from .evaluation import (
    read_reference as read_reference,
)
from .evaluation import (
    summarize_cohort as summarize_cohort,
)
from .patient import (
    TEMPLATE_MM as TEMPLATE_MM,
)
from .patient import (
    AlignedPhase as AlignedPhase,
)
from .patient import (
    Inflow as Inflow,
)
from .patient import (
    Maps as Maps,
)
from .patient import (
    Measurements as Measurements,
)
from .patient import (
    Prepared as Prepared,
)
from .patient import (
    StandardMaps as StandardMaps,
)
from .patient import (
    Trust as Trust,
)
from .patient import (
    align_cta as align_cta,
)
from .patient import (
    align_phases as align_phases,
)
from .patient import (
    align_template as align_template,
)
from .patient import (
    carry_images as carry_images,
)
from .patient import (
    compute_maps as compute_maps,
)
from .patient import (
    conform_ncct as conform_ncct,
)
from .patient import (
    measure as measure,
)
from .patient import (
    measure_images as measure_images,
)
from .patient import (
    one_thread as one_thread,
)
from .patient import (
    prepare as prepare,
)
from .patient import (
    to_template as to_template,
)

__all__ = [
    'COMPARED',
    'MAPS',
    'MAP_SPACING',
    'MEASURES',
    'RECIPE',
    'SAMPLED',
    'TEMPLATE_MM',
    'AlignedPhase',
    'CohortData',
    'Evaluation',
    'GroupOutput',
    'Inflow',
    'Maps',
    'Measurements',
    'Prepared',
    'Reference',
    'Sample',
    'SplitSeries',
    'StandardMaps',
    'Trust',
    'add_territories',
    'align_cta',
    'align_phases',
    'align_template',
    'applied_outputs',
    'apply_model',
    'calibration_content',
    'carry_images',
    'check_given',
    'check_grids',
    'cohort_outputs',
    'cohort_table',
    'compare_calibrations',
    'compute_maps',
    'conform_ncct',
    'draw_cohort',
    'evaluate_patient',
    'fit_model',
    'fit_outputs',
    'fit_resampled',
    'fit_shuffled',
    'make_lattice',
    'make_pairs',
    'match_cohort',
    'measure',
    'measure_images',
    'merge_validation',
    'null_outputs',
    'on_template',
    'one_thread',
    'prepare',
    'prepare_cohort',
    'read_reference',
    'refit_pairs',
    'sample_pair',
    'split_series',
    'stability_outputs',
    'stack_cohort',
    'summarize_cohort',
    'to_template',
    'validate_fold',
    'validate_model',
    'validation_outputs',
]
