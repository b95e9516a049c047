"""scipy's correlations and scikit-learn's error of the same numbers, for a language model and for a head."""

from __future__ import annotations

from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import root_mean_squared_error

from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import answered, equal, method


def oracle_scipy() -> None:
    scorer = method(__name__)
    for world in (0, 2):
        answers, said, truth = answered(scorer, world)
        equal(value(scorer, answers, "pearson"), pearsonr(said, truth).statistic, "pearson")
        equal(value(scorer, answers, "spearman"), spearmanr(said, truth).statistic, "spearman")
        equal(value(scorer, answers, "rmse"), root_mean_squared_error(truth, said), "rmse")
