"""The command line of `python -m trainer.evaluate`; PyTorch is imported once its flags are valid."""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from trainer.arguments import Parser
from trainer.command import convert, run
from trainer.config import Precision

EXAMPLES = """
examples:
  python -m trainer.evaluate --checkpoint runs/SWEEP/trials/ID/epoch_0002 --data shards
  python -m trainer.evaluate --checkpoint resnet50.pth --model resnet50 --data s3://bucket/imagenet --images all
  python -m trainer.evaluate --checkpoint runs/SWEEP/trials/*/epoch_0002 --data shards --evaluate robustness --eps 1,2
  MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python -m trainer.evaluate --checkpoint models:/resnet50/1 --data shards

Writes report.json and one gallery of heatmaps for each checkpoint into --out. What the metrics mean: docs/metrics.md.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate every checkpoint; the exit status."""
    return run(lambda: _evaluate(argv), "stopped; report.json holds the checkpoints that were done")


def _evaluate(argv: Sequence[str] | None) -> int:
    given = _parse(argv)
    from trainer.evaluate.run import run as evaluate

    return evaluate(given)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return convert(tuple[float, ...], text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        "python -m trainer.evaluate",
        description="Accuracy, robustness and heatmap quality of checkpoints, on the test split.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to evaluate")
    what.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="C",
        help="folder of a trial's checkpoint; file of weights; pretrained (downloaded by timm); models:/NAME/VERSION",
    )  # fmt: skip
    what.add_argument("--data", required=True, metavar="WHERE", help="shards: folder or URL (http, s3, gs)")
    what.add_argument("--model", help="architecture of weights, such as resnet50 or timm:NAME")
    what.add_argument("--ema", action="store_true", help="take the moving average that a file has beside its weights")
    what.add_argument("--activation", help="of our own models (default: the trial's, or relu)")
    what.add_argument(
        "--image-size", type=int, metavar="N", help="side in pixels (default: the trial's or the model's)"
    )
    what.add_argument(
        "--mean", type=_numbers, metavar="R,G,B", help="of the pixels, 0 to 1 (default: the trial's or the model's)"
    )
    what.add_argument(
        "--std", type=_numbers, metavar="R,G,B", help="their deviation, 0 to 1 (default: the trial's or the model's)"
    )
    what.add_argument("--split", choices=("test", "val"), default="test", help="default test; without one, half of val")
    how = parser.add_argument_group("what to measure")
    how.add_argument(
        "--evaluate", choices=("light", "robustness", "full"), default="full",
        help="accuracy, the trial's attack and heatmap similarity (light), all attacks too (robustness), everything",
    )  # fmt: skip
    how.add_argument("--images", default="256", metavar="N", help="to attack and explain, or all (default 256)")
    how.add_argument("--eps", default="1,2,4", metavar="E,E", help="ℓ∞ radii in gray levels of 255 (default 1,2,4)")
    how.add_argument("--l2-eps", default="64,128", metavar="E,E", help="ℓ2 radii in gray levels (default 64,128)")
    how.add_argument("--steps", type=int, default=20, metavar="N", help="of PGD (default 20)")
    how.add_argument("--restarts", type=int, default=1, metavar="N", help="of PGD (default 1)")
    how.add_argument("--queries", type=int, default=100, metavar="N", help="of Square; 0 leaves it out (default 100)")
    how.add_argument("--autoattack", action="store_true", help="also AutoAttack at each --eps; hours on a CPU")
    how.add_argument("--seed", type=int, metavar="N", help="of attacks and noise (default: the trial's, or 0)")
    where = parser.add_argument_group("how and where")
    where.add_argument("--batch-size", type=int, metavar="N", help="images at once (default: the trial's, or 64)")
    where.add_argument(
        "--precision", choices=get_args(Precision), help="of the model (default: the trial's, or float32)"
    )
    where.add_argument("--device", help="such as cuda:1 (default: a GPU where there is one)")
    where.add_argument("--loader-workers", type=int, default=0, metavar="N", help="processes that decode (default 0)")
    where.add_argument("--gallery", type=int, default=8, metavar="N", help="images in a gallery (default 8)")
    where.add_argument("--out", metavar="FOLDER", help="of report.json and galleries (default runs/evaluation-DATE)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
