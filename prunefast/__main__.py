import sys

from prunefast.cli import main

sys.exit(main())
