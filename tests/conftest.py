"""Before torch is loaded: waiting threads soon sleep instead of spinning, for the tests share the machine with their children."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
