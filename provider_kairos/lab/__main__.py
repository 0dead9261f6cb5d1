"""``python -m provider_kairos.lab``: the lab's commands without the rest of the program."""

import sys

from provider_kairos.lab.cli import main

sys.exit(main())
