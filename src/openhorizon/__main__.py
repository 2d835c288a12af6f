"""``python -m openhorizon``: what dvc.yaml calls."""

import sys

from openhorizon.cli import main

sys.exit(main())
