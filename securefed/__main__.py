"""`python -m securefed` is the command `securefed`."""

import sys

from securefed.cli import main

sys.exit(main())
