"""`python -m regularizers` lists every regularizer: formula, what it pulls the heatmap towards, weights, source."""

import inspect
import textwrap

from regularizers import REGULARIZERS


def main() -> None:
    """Print name, default range of the weight and documentation of every regularizer."""
    print("One unit of weight is ‖∇θ CE‖ / ‖∇θ penalty‖ at the start checkpoint.\n")
    for name, regularizer in sorted(REGULARIZERS.items()):
        low, high = regularizer.strengths()
        print(f"{name}  (weight {low:g} to {high:g} units)")
        print(textwrap.indent(inspect.getdoc(regularizer) or "", "    ") + "\n")


if __name__ == "__main__":
    main()
