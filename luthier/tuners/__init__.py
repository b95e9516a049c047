"""Which numbers move. Importing the package registers luthier's own types with peft."""

import luthier.core.adapt
from luthier.core import catalog

catalog.import_axis("tuners")
