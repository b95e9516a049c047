"""Reports: what a run, or a comparison of runs, showed, as one self-contained page.

    write_run_report(folder)        run.json, metrics.jsonl, results.json, samples.jsonl  ->  report.html
    write_compare_report(folder)    compare.json (and the run folders that it names)      ->  report.html
    write_personalize_report(folder)   personalize.json                                   ->  report.html
    write_study_report(folder)      compare.json of a study                               ->  report.html
    write_grid_report(folder)       compare.json of an alignment grid                     ->  report.html
    save_png(folder)                metrics.jsonl  ->  training_loss.png, training_eval_loss.png

The path of a number: `evidence.py` reads it and judges it, `words.py` says it, `charts.py` and `scatter.py` draw it,
`run.py`, `compare.py`, `personalize.py`, `study.py` and `grid.py` choose what a page shows, `page.py` renders and writes. The
same input gives the same bytes.
"""

from luthier.report.charts import save_png
from luthier.report.compare import write_compare_report
from luthier.report.grid import write_grid_report
from luthier.report.personalize import write_personalize_report
from luthier.report.run import write_run_report
from luthier.report.study import write_study_report

__all__ = [
    "save_png", "write_compare_report", "write_grid_report", "write_personalize_report", "write_run_report",
    "write_study_report",
]  # fmt: skip
