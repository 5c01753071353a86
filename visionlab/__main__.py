"`python -m visionlab` is the command `visionlab`."
import sys
from visionlab.cli import main

if __name__ == "__main__": sys.exit(main())
