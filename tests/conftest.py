"""Before torch is loaded: waiting threads soon sleep instead of spinning, for the tests have children beside them."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
