"""Which numbers move. Importing the package registers luthier's own types with peft."""

import luthier.core.adapt  # noqa: F401  the bridge that the files below register through
from luthier.core import catalog

catalog.import_axis("tuners")
