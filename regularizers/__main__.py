"""`python -m regularizers` lists every regularizer: name, what it is, strength range, source."""

import inspect

from regularizers import REGULARIZERS


def main() -> None:
    """Print the first lines of every regularizer's documentation."""
    for name, regularizer in sorted(REGULARIZERS.items()):
        low, high = regularizer.strengths()
        print(f"{name}  (strength {low:g} to {high:g} units of ‖∇θ CE‖/‖∇θ penalty‖)")
        print("    " + (inspect.getdoc(regularizer) or "").replace("\n", "\n    ") + "\n")


if __name__ == "__main__":
    main()
