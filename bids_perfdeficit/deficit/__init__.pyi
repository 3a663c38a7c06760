from .fitting import fit as fit
from .grid import Grid as Grid
from .inference import (
    Cluster as Cluster,
)
from .inference import (
    NullCalibration as NullCalibration,
)
from .inference import (
    Stability as Stability,
)
from .inference import (
    adjust_holm as adjust_holm,
)
from .inference import (
    bootstrap as bootstrap,
)
from .inference import (
    coverage_resemblance as coverage_resemblance,
)
from .inference import (
    find_clusters as find_clusters,
)
from .inference import (
    null_calibration as null_calibration,
)
from .inference import (
    shuffle_scores as shuffle_scores,
)
from .map_flow import MapFlow as MapFlow
from .map_flow import fit_map_flow as fit_map_flow
from .models import get_model as get_model
from .models import model_names as model_names
from .models import register as register
from .models.base import (
    DeficitModel as DeficitModel,
)
from .models.base import (
    Drawing as Drawing,
)
from .models.base import (
    ModelFit as ModelFit,
)
from .models.base import (
    Offers as Offers,
)
from .perfusion_model import PerfusionModel as PerfusionModel
from .preparation import (
    Prepared as Prepared,
)
from .preparation import (
    coarse_maps as coarse_maps,
)
from .preparation import (
    positive_asymmetry as positive_asymmetry,
)
from .preparation import (
    prepare as prepare,
)
from .result import DeficitFit as DeficitFit
from .result import Item as Item
from .result import Predictions as Predictions
from .rules import credible_set as credible_set
from .settings import DeficitSettings as DeficitSettings
from .stacking import (
    Lattice as Lattice,
)
from .stacking import (
    Stack as Stack,
)
from .stacking import (
    check_given as check_given,
)
from .stacking import (
    check_grids as check_grids,
)
from .stacking import (
    make_lattice as make_lattice,
)
from .stacking import (
    stack as stack,
)
from .tables import (
    clusters_table as clusters_table,
)
from .tables import (
    metrics_table as metrics_table,
)
from .tables import (
    null_table as null_table,
)
from .tables import (
    predictions_table as predictions_table,
)
from .tables import (
    stability_table as stability_table,
)
from .tables import (
    summary_table as summary_table,
)
from .validation import (
    FoldPrediction as FoldPrediction,
)
from .validation import (
    ItemMetrics as ItemMetrics,
)
from .validation import (
    Validation as Validation,
)
from .validation import (
    cross_validate as cross_validate,
)
from .validation import (
    fit_fold as fit_fold,
)
from .validation import (
    merge_folds as merge_folds,
)

__all__ = [
    'Cluster',
    'DeficitFit',
    'DeficitModel',
    'DeficitSettings',
    'Drawing',
    'FoldPrediction',
    'Grid',
    'Item',
    'ItemMetrics',
    'Lattice',
    'ModelFit',
    'NullCalibration',
    'Offers',
    'PerfusionModel',
    'Predictions',
    'Prepared',
    'Stability',
    'Stack',
    'Validation',
    'adjust_holm',
    'bootstrap',
    'check_given',
    'check_grids',
    'clusters_table',
    'coarse_maps',
    'coverage_resemblance',
    'credible_set',
    'cross_validate',
    'find_clusters',
    'fit',
    'fit_fold',
    'get_model',
    'make_lattice',
    'merge_folds',
    'metrics_table',
    'model_names',
    'null_calibration',
    'null_table',
    'positive_asymmetry',
    'predictions_table',
    'prepare',
    'register',
    'shuffle_scores',
    'stability_table',
    'stack',
    'summary_table',
]
